// Estimates: which lines and blocks matter on this input.
#include "library.h"
