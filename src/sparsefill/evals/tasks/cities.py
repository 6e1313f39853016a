"""Names that needles are told apart by."""

NAMES = """
Aberdeen, Accra, Adelaide, Algiers, Antwerp, Asunción, Auckland, Baku, Bergen, Bogotá, Bologna,
Bordeaux, Boston, Brisbane, Bristol, Calgary, Cape Town, Cardiff, Casablanca, Cologne, Cork,
Cusco, Dallas, Denver, Dresden, Dublin, Durban, Edinburgh, Florence, Freetown, Fukuoka, Geneva,
Genoa, Ghent, Glasgow, Gothenburg, Granada, Hamburg, Hanoi, Harare, Havana, Hobart, Honolulu,
Houston, Innsbruck, Izmir, Jaipur, Kathmandu, Kolkata, Kraków, Kyoto, La Paz, Leipzig,
Liverpool, Ljubljana, Luanda, Lusaka, Luxembourg, Lyon, Málaga, Managua, Manchester, Manila,
Marseille, Memphis, Milan, Minsk, Montreal, Munich, Nagoya, Naples, Nashville, New Orleans,
Nice, Odesa, Osaka, Ottawa, Palermo, Panama City, Perth, Philadelphia, Porto, Prague, Quebec,
Quito, Reykjavik, Riga, Rotterdam, Salzburg, San Diego, Sapporo, Seville, Stockholm, Tallinn,
Tbilisi, Toulouse, Tripoli, Turin, Utrecht, Valencia, Venice, Vilnius, Warsaw, Wellington,
Zagreb, Zurich
"""
CITIES = tuple(name.strip() for name in NAMES.split(","))
