"""Numbers: conversions, word problems, number words, sorting and sequences. What can be computed is computed here."""

from __future__ import annotations

import random
from fractions import Fraction

from .record import Record, dress, pairs, rows

GALLON = Fraction(3_785_411_784, 1_000_000)  # milliliters

# How many of the dimension's base unit (meter, gram, milliliter, second) one of each unit is; exact by definition.
UNITS = {
    "millimeter": Fraction(1, 1000),
    "centimeter": Fraction(1, 100),
    "meter": Fraction(1),
    "kilometer": Fraction(1000),
    "inch": Fraction(254, 10_000),
    "foot": Fraction(3048, 10_000),
    "yard": Fraction(9144, 10_000),
    "mile": Fraction(1_609_344, 1000),
    "gram": Fraction(1),
    "kilogram": Fraction(1000),
    "metric ton": Fraction(1_000_000),
    "ounce": Fraction(28_349_523_125, 1_000_000_000),
    "pound": Fraction(45_359_237, 100_000),
    "milliliter": Fraction(1),
    "liter": Fraction(1000),
    "teaspoon": GALLON / 768,
    "tablespoon": GALLON / 256,
    "fluid ounce": GALLON / 128,
    "cup": GALLON / 16,
    "pint": GALLON / 8,
    "quart": GALLON / 4,
    "gallon": GALLON,
    "second": Fraction(1),
    "minute": Fraction(60),
    "hour": Fraction(3600),
    "day": Fraction(86_400),
    "week": Fraction(604_800),
}

# request | value | from | to
CONVERSION = """
How many meters are there in 3.5 kilometers? | 3.5 | kilometer | meter
Convert 12 inches to centimeters. | 12 | inch | centimeter
A marathon is about 26.2 miles long. What is that in kilometers? | 26.2 | mile | kilometer
The ceiling is 9 feet high. Give the height in inches. | 9 | foot | inch
What is 250 centimeters in meters? | 250 | centimeter | meter
Express 5 miles in kilometers. | 5 | mile | kilometer
My desk is 72 inches wide. How many feet is that? | 72 | inch | foot
Please convert 400 meters to feet. | 400 | meter | foot
A football field measures 100 yards between the goal lines. How many feet is that? | 100 | yard | foot
How long is 45 millimeters in centimeters? | 45 | millimeter | centimeter
The sign says 80 kilometers to the border. How many miles is that? | 80 | kilometer | mile
Change 6 yards to meters. | 6 | yard | meter
The plank is 2.4 meters long. What is its length in millimeters? | 2.4 | meter | millimeter
If a path is 1,500 meters long, how many kilometers is it? | 1500 | meter | kilometer
How many yards make up 2 miles? | 2 | mile | yard
What is 30 centimeters in inches? | 30 | centimeter | inch
How many grams are in 2.75 kilograms? | 2.75 | kilogram | gram
The parcel weighs 11 pounds. Convert that to kilograms. | 11 | pound | kilogram
Convert 8 ounces of cheese to grams. | 8 | ounce | gram
My suitcase weighs 23 kilograms. What is that in pounds? | 23 | kilogram | pound
How many ounces are there in 4 pounds? | 4 | pound | ounce
A young elephant weighs 1.2 metric tons. Express this in kilograms. | 1.2 | metric ton | kilogram
Turn 650 grams into kilograms. | 650 | gram | kilogram
What does a 100-gram bar of chocolate weigh in ounces? | 100 | gram | ounce
I need 40 ounces of flour. How many pounds should I buy? | 40 | ounce | pound
The truck carries 7,500 kilograms of gravel. State the load in metric tons. | 7500 | kilogram | metric ton
Convert 150 pounds to kilograms. | 150 | pound | kilogram
The thermometer in Cairo shows 35 degrees Celsius. What is that in Fahrenheit? | 35 | Celsius | Fahrenheit
Convert 50 degrees Fahrenheit to Celsius. | 50 | Fahrenheit | Celsius
The oven should be at 180 degrees Celsius. What do I set on a Fahrenheit dial? | 180 | Celsius | Fahrenheit
At what Celsius temperature does a Fahrenheit thermometer read 14 degrees? | 14 | Fahrenheit | Celsius
Express -10 degrees Celsius in Fahrenheit. | -10 | Celsius | Fahrenheit
What is 68 degrees Fahrenheit on the Celsius scale? | 68 | Fahrenheit | Celsius
A fever of 39 degrees Celsius is how many degrees Fahrenheit? | 39 | Celsius | Fahrenheit
My recipe says 425 degrees Fahrenheit, but my oven uses Celsius. What is the setting? | 425 | Fahrenheit | Celsius
How many milliliters are in 1.8 liters? | 1.8 | liter | milliliter
Convert 3 gallons to quarts. | 3 | gallon | quart
The soup calls for 6 cups of stock. How many pints is that? | 6 | cup | pint
A tank holds 60 liters. What is that in gallons? | 60 | liter | gallon
How many teaspoons are there in 4 tablespoons? | 4 | tablespoon | teaspoon
What is 330 milliliters in fluid ounces? | 330 | milliliter | fluid ounce
I have 20 fluid ounces of cream. How many cups is that? | 20 | fluid ounce | cup
Change 2,250 milliliters to liters. | 2250 | milliliter | liter
How many liters does a 5-gallon bucket hold? | 5 | gallon | liter
Convert 12 pints to gallons. | 12 | pint | gallon
How many seconds are there in 7 minutes? | 7 | minute | second
The film lasts 135 minutes. How many hours is that? | 135 | minute | hour
How many hours are in 3 days? | 3 | day | hour
Express 6 weeks in days. | 6 | week | day
The battery lasts 96 hours. What is that in days? | 96 | hour | day
What is 2.5 hours in minutes? | 2.5 | hour | minute
A song runs for 210 seconds. Give its length in minutes. | 210 | second | minute
How many minutes does a full day have? | 1 | day | minute
The voyage took 91 days. How many weeks was that? | 91 | day | week
"""

ARITHMETIC = """
Mara bakes 4 trays of 12 muffins. How many muffins does she bake?
= 4 × 12 = 48, so she bakes 48 muffins.
A bus has 52 seats, and 37 are taken. How many are free?
= 52 - 37 = 15, so 15 seats are free.
Seven friends share 84 strawberries equally. How many does each one get?
= 84 ÷ 7 = 12, so each friend gets 12 strawberries.
Leo saved 45 dollars in June and 38 dollars in July. How much did he save altogether?
= 45 + 38 = 83, so he saved 83 dollars.
A jacket costs 90 dollars, reduced by 20 percent. What is the new price?
= 90 × 0.8 = 72, so the jacket now costs 72 dollars.
Each shelf holds 25 books. How many books fit on 6 shelves?
= 25 × 6 = 150, so 150 books fit on the shelves.
A rope of 63 feet is cut into 9 equal pieces. How long is each piece?
= 63 ÷ 9 = 7, so each piece is 7 feet long.
Tickets cost 8 dollars for adults and 5 dollars for children. What do 2 adults and 3 children pay?
= 2 × 8 + 3 × 5 = 31, so they pay 31 dollars.
The temperature was 18 degrees at noon and fell by 23 degrees overnight. How cold did it get?
= 18 - 23 = -5, so it got down to -5 degrees.
A rectangular garden is 14 meters long and 9 meters wide. What is its area?
= 14 × 9 = 126, so its area is 126 square meters.
Nora reads 30 pages a day. How long does she need for a book of 240 pages?
= 240 ÷ 30 = 8, so she needs 8 days.
There were 19 ducks on the pond. Six flew off and 11 landed. How many ducks are there now?
= 19 - 6 + 11 = 24, so there are 24 ducks now.
What is the average of 6, 9 and 15?
= (6 + 9 + 15) ÷ 3 = 10, so the average is 10.
A car goes 360 miles on 12 gallons of gas. How many miles does it go on one gallon?
= 360 ÷ 12 = 30, so it goes 30 miles on a gallon.
Pencils come in packs of 8. How many packs do 72 pencils make?
= 72 ÷ 8 = 9, so they make 9 packs.
A cyclist rides for 3 hours at 22 kilometers an hour. How far does she get?
= 3 × 22 = 66, so she rides 66 kilometers.
I buy a sandwich for 6.50 dollars and pay with a 20-dollar bill. How much change do I get?
= 20 - 6.50 = 13.50, so you get 13.50 dollars in change.
A farmer has 48 eggs and fills cartons of a dozen. How many cartons does he fill?
= 48 ÷ 12 = 4, so he fills 4 cartons.
The school has 312 girls and 295 boys. How many students is that in all?
= 312 + 295 = 607, so the school has 607 students.
A square tile has sides of 15 centimeters. How long is its edge all the way around?
= 4 × 15 = 60, so the edge is 60 centimeters long.
Ivan earns 18 dollars an hour. What does he earn in a week of 35 hours?
= 18 × 35 = 630, so he earns 630 dollars.
A movie starts at 7 and lasts 125 minutes. The first 15 minutes are ads. How long is the film without them?
= 125 - 15 = 110, so the film itself lasts 110 minutes.
What is a quarter of 260?
= 260 ÷ 4 = 65, so a quarter of 260 is 65.
Three boxes weigh 4, 7 and 12 pounds. What do they weigh together?
= 4 + 7 + 12 = 23, so they weigh 23 pounds together.
A pizza is cut into 8 slices, and we eat 5 of them. How many slices remain?
= 8 - 5 = 3, so 3 slices remain.
How much is 15 percent of 80?
= 80 × 0.15 = 12, so 15 percent of 80 is 12.
A train with 9 cars carries 64 people in each car. How many passengers does it carry?
= 9 × 64 = 576, so it carries 576 passengers.
Ella is 13. Her grandfather is 5 times as old. What is his age?
= 13 × 5 = 65, so he is 65 years old.
A bottle holds 750 milliliters. How much do 4 bottles hold?
= 4 × 750 = 3,000, so they hold 3,000 milliliters.
A library lends 140 books on Monday, 95 on Tuesday and 165 on Wednesday. What is the total?
= 140 + 95 + 165 = 400, so the total is 400 books.
We planted 6 rows of 18 onions, but 20 onions did not come up. How many grew?
= 6 × 18 - 20 = 88, so 88 onions grew.
A phone plan costs 24 dollars a month. What does it cost for a year?
= 24 × 12 = 288, so it costs 288 dollars a year.
A hiker climbs from 860 meters to 1,410 meters. How many meters does he climb?
= 1,410 - 860 = 550, so he climbs 550 meters.
Five workers need 20 hours each to paint a hall. How many working hours is that?
= 5 × 20 = 100, so it is 100 working hours.
What is the product of 17 and 6?
= 17 × 6 = 102, so the product is 102.
A bag of 96 marbles is shared among 4 children. How many marbles does each receive?
= 96 ÷ 4 = 24, so each child receives 24 marbles.
A hotel has 5 floors with 16 rooms each, and 23 rooms are empty. How many are occupied?
= 5 × 16 - 23 = 57, so 57 rooms are occupied.
Take 275 from 1,000. What is left?
= 1,000 - 275 = 725, so 725 is left.
A pump moves 35 liters a minute. How many liters does it move in 8 minutes?
= 35 × 8 = 280, so it moves 280 liters.
A class of 28 splits into groups of 4. How many groups are there?
= 28 ÷ 4 = 7, so there are 7 groups.
Coffee costs 3 dollars and cake costs 4 dollars. What do 5 coffees and 2 cakes cost?
= 5 × 3 + 2 × 4 = 23, so they cost 23 dollars.
A candle 24 centimeters tall burns down 3 centimeters every hour. How many hours does it last?
= 24 ÷ 3 = 8, so it lasts 8 hours.
Ana scored 17 points, Bo 22 and Cy 9. By how much did Bo beat Cy?
= 22 - 9 = 13, so Bo beat Cy by 13 points.
A plane carries 180 people, and a third of them are children. How many children are on board?
= 180 ÷ 3 = 60, so 60 children are on board.
Add 128 and 254, then subtract 82.
= 128 + 254 - 82 = 300, so the result is 300.
A right triangle has legs of 6 and 8 centimeters. What is its area?
= 6 × 8 ÷ 2 = 24, so its area is 24 square centimeters.
I swim 40 laps in a 25-meter pool. How far do I swim?
= 40 × 25 = 1,000, so you swim 1,000 meters.
A recipe for 4 people uses 300 grams of rice. How much do I need for 10 people?
= 300 ÷ 4 × 10 = 750, so you need 750 grams of rice.
A movie theater sold 210 tickets at 9 dollars each. How much money did it take in?
= 210 × 9 = 1,890, so it took in 1,890 dollars.
Of 50 light bulbs, 4 percent are faulty. How many are faulty?
= 50 × 0.04 = 2, so 2 bulbs are faulty.
Sam walks 2 kilometers to school and back again, 5 days a week. How far does he walk in a week?
= 2 × 2 × 5 = 20, so he walks 20 kilometers a week.
How many legs do 7 spiders and 3 cats have in total?
= 7 × 8 + 3 × 4 = 68, so they have 68 legs.
A carpenter cuts 35 centimeters off a board of 120 centimeters. How much board is left?
= 120 - 35 = 85, so 85 centimeters are left.
Fruit salad for 6 guests takes 9 oranges. How many oranges does each guest get on average?
= 9 ÷ 6 = 1.5, so each guest gets 1.5 oranges on average.
"""

TO_WORDS = (17, 48, 90, 113, 206, 359, 640, 815, 1004, 1270, 2046, 3500, 7318, 12_000, 15_060, 40_702, 99_999, 250_000)
TO_DIGITS = (29, 61, 112, 270, 408, 583, 1009, 1450, 3067, 5600, 8212, 10_300, 64_018, 700_000)

TO_WORDS_ASK = (
    "Write {0} in words.",
    "How do you spell out the number {0}?",
    "Spell {0} as you would on a check, in words only.",
    "Turn this number into words.",
    "What is this number in words?",
    "Write this number out in full, using words.",
)
TO_DIGITS_ASK = (
    'Write "{0}" in digits.',
    "Which number is {0}? Use digits.",
    "Turn these words into a number.",
    "Give the digits for this number.",
    "How is {0} written as a numeral?",
)

# order | items
SORT = """
alphabet | walnut, almond, pecan, cashew, hazelnut
alphabet | Norway, Chile, Ghana, Vietnam, Malta
alphabet | spade, rake, hoe, trowel, shears
alphabet | Theo, Amina, Quentin, Bridget, Carlos
alphabet | tiger, otter, badger, zebra, camel, lynx
alphabet | oboe, trumpet, bassoon, cello, tuba
alphabet | plum, peach, pear, papaya, pineapple
alphabet | station, harbor, airport, terminal
alphabet | velvet, cotton, linen, silk, denim
alphabet | Jupiter, Neptune, Earth, Mercury, Venus
alphabet | grandfather, nephew, aunt, cousin, sister
alphabet | thistle, poppy, daisy, iris, tulip, aster
alphabet | coal, copper, cobalt, clay, chalk
alphabet | Lima, Oslo, Accra, Dublin, Hanoi, Kyiv
alphabet | butter, sugar, vanilla, flour, eggs
reverse | mango, lemon, cherry, fig, apricot
reverse | bronze, zinc, nickel, lead
reverse | Peter, Wanda, Diego, Hannah
ascending | 34, 8, 91, 27, 60
ascending | 405, 54, 450, 45, 540
ascending | -3, 7, 0, -12, 5
ascending | 2.5, 2.05, 2.45, 2.15
ascending | 1200, 980, 1020, 899, 1100
ascending | 16, 61, 6, 66, 11, 1
ascending | 0.3, 0.09, 0.25, 0.7
descending | 72, 19, 85, 40, 33
descending | 308, 380, 83, 830, 38
descending | -8, -2, -15, 4, 1
descending | 5.1, 5.9, 4.8, 5.45
descending | 1999, 2014, 1987, 2003
length | lighthouse, cat, window, igloo, sunflower
length | ambulance, taxi, tractor, van, truck
length | go, planet, the, mountain, river
length | elephant, ox, horse, monkey, rat
chronology | 1945, 1789, 1969, 1492, 1914
chronology | March, January, December, July, May
chronology | Thursday, Monday, Saturday, Tuesday
chronology | evening, dawn, noon, midafternoon
chronology | childhood, old age, infancy, adolescence
"""

SORT_ASK = {
    "alphabet": (
        "Sort these words alphabetically: {0}",
        "Put the list into alphabetical order.",
        "Arrange from A to Z: {0}",
        "Alphabetize this list.",
        "In what order would these appear in an index? {0}",
        "List the following in alphabetical order: {0}",
    ),
    "reverse": ("Sort these from Z to A.", "Put these into reverse alphabetical order: {0}"),
    "ascending": (
        "Sort the numbers from smallest to largest.",
        "Put these numbers into ascending order: {0}",
        "Order from lowest to highest: {0}",
    ),
    "descending": (
        "Sort the numbers from largest to smallest: {0}",
        "Arrange these in descending order.",
        "Start with the largest number and work down: {0}",
    ),
    "length": ("Sort these words by length, shortest first: {0}", "Order the words from shortest to longest."),
    "chronology": (
        "Put these in the order in which they come: {0}",
        "Arrange from first to last, in order of time.",
        "Sort these by time, earliest first: {0}",
    ),
}

TIMES = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    *("December", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "dawn", "noon", "midafternoon"),
    *("evening", "infancy", "childhood", "adolescence", "old age"),
)

SEQUENCE = """
2, 4, 8, 16, ...
= The next number is 32, because each number is twice the one before.
5, 10, 15, 20, ...
= The next number is 25, because the numbers go up by 5.
1, 4, 9, 16, ...
= The next number is 25, because these are the square numbers.
1, 1, 2, 3, 5, 8, ...
= The next number is 13, because each number is the sum of the two before it.
100, 90, 80, 70, ...
= The next number is 60, because the numbers go down by 10.
3, 9, 27, ...
= The next number is 81, because each number is three times the one before.
A, C, E, G, ...
= The next letter is I, because every second letter is left out.
Monday, Wednesday, Friday, ...
= The next day is Sunday, because every second day is left out.
64, 32, 16, 8, ...
= The next number is 4, because each number is half the one before.
7, 14, 21, 28, ...
= The next number is 35, because the numbers go up by 7.
1, 2, 4, 7, 11, ...
= The next number is 16, because the step grows by 1 each time.
Z, Y, X, W, ...
= The next letter is V, because the alphabet runs backward.
2, 3, 5, 7, 11, ...
= The next number is 13, because these are the prime numbers.
1, 8, 27, 64, ...
= The next number is 125, because these are the cube numbers.
January, March, May, ...
= The next month is July, because every second month is left out.
81, 27, 9, 3, ...
= The next number is 1, because each number is a third of the one before.
4, 7, 10, 13, ...
= The next number is 16, because the numbers go up by 3.
1000, 100, 10, ...
= The next number is 1, because each number is a tenth of the one before.
AB, CD, EF, ...
= The next pair is GH, because the letters go on in pairs.
50, 44, 38, 32, ...
= The next number is 26, because the numbers go down by 6.
3, 6, 12, 24, ...
= The next number is 48, because each number is twice the one before.
2, 5, 11, 23, ...
= The next number is 47, because each number is one more than twice the one before.
A1, B2, C3, ...
= The next item is D4, because the letter and the number both move on by one.
2, 1, 3, 4, 7, 11, ...
= The next number is 18, because each number is the sum of the two before it.
"""

SEQUENCE_ASK = (
    "What comes next? {0}",
    "Continue the sequence: {0}",
    "Which item follows in this series? {0}",
    "Find the pattern and give the next item.",
    "Look at this row: {0} What comes after it, and why?",
    "What is the next entry in this pattern? {0}",
)

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def spell(number: int) -> str:
    """Return a whole number below one million in American words: 1204 is one thousand two hundred four."""
    assert 0 <= number < 1_000_000, number
    if number < 20:
        return ONES.split()[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS.split()[tens - 2] + (f"-{spell(ones)}" if ones else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = divmod(number, size)
    return f"{spell(many)} {name}" + (f" {spell(rest)}" if rest else "")


def convert(value: Fraction, source: str, target: str) -> Fraction:
    """Return `value` of the unit `source` in the unit `target`, exactly."""
    if source == "Celsius":
        return value * 9 / 5 + 32
    if source == "Fahrenheit":
        return (value - 32) * 5 / 9
    return value * UNITS[source] / UNITS[target]


def amount(value: Fraction, unit: str) -> str:
    """Return a value of at most two decimals with its unit in the right number: `1 inch`, `2.5 feet`."""
    number = f"{float(value):,.2f}".rstrip("0").rstrip(".")
    if unit in ("Celsius", "Fahrenheit"):
        return f"{number} degrees {unit}"
    plural = {"foot": "feet", "inch": "inches"}.get(unit, unit + "s")
    return f"{number} {unit if value == 1 else plural}"


def _conversions() -> list[Record]:
    """Answer each conversion exactly, or to one decimal with "about"."""
    records = []
    for request, number, source, target in rows(CONVERSION):
        value = Fraction(number)
        exact = convert(value, source, target)
        rounded = Fraction(round(exact * 10), 10)
        is_exact = exact * 100 == int(exact * 100)
        result = amount(exact, target) if is_exact else f"about {amount(rounded, target)}"
        records.append(Record("unit conversion", request, "", f"{amount(value, source)} is {result}."))
    return records


def _sort_key(order: str, item: str) -> tuple[float, str]:
    """Return what an item is sorted by: its place in time, its value, its length or its letters."""
    if order in ("alphabet", "reverse"):
        return 0, item.lower()
    if order == "length":
        return len(item), ""
    return (TIMES.index(item) if item in TIMES else float(item)), ""


def _sorts(rng: random.Random) -> list[Record]:
    """Sort each list by the order its row names."""
    records = []
    for order, wordings in SORT_ASK.items():
        content = []
        for items in (items.split(", ") for named, items in rows(SORT) if named == order):
            keyed = sorted((_sort_key(order, item), item) for item in items)
            ordered = [item for _, item in (keyed[::-1] if order in ("reverse", "descending") else keyed)]
            content.append((", ".join(items), ", ".join(ordered)))
        records += dress("sorting", content, wordings, rng)
    return records


def records(rng: random.Random) -> list[Record]:
    """Return the records about numbers, order and sequences."""
    to_words = [(f"{number:,}", spell(number).capitalize()) for number in TO_WORDS]
    to_digits = [(spell(number), f"{number:,}") for number in TO_DIGITS]
    return [
        *_conversions(),
        *(Record("arithmetic", problem, "", answer) for problem, answer in pairs(ARITHMETIC)),
        *dress("number words", to_words, TO_WORDS_ASK, rng),
        *dress("number words", to_digits, TO_DIGITS_ASK, rng),
        *_sorts(rng),
        *dress("sequence", pairs(SEQUENCE), SEQUENCE_ASK, rng),
    ]
