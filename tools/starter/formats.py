"""Text put into another form: lists, dates, cases, JSON, tables. Each row says what is wanted in its own words."""

from __future__ import annotations

import random

from .record import Record, pairs

# A request, and after " || " the text it works on where that stands in the input.
FORMAT = r"""
Turn this shopping list into bullet points. || eggs, rice, olive oil, dish soap
= - eggs\n- rice\n- olive oil\n- dish soap
Format the steps as a numbered list. || boil the water; warm the pot; add the tea; wait four minutes
= 1. Boil the water.\n2. Warm the pot.\n3. Add the tea.\n4. Wait four minutes.
Write the date 2021-03-09 the way Americans say it, with the month as a word.
= March 9, 2021
Change "November 30, 1998" to the format YYYY-MM-DD.
= 1998-11-30
Put this book title into title case: the secret life of garden snails
= The Secret Life of Garden Snails
Write the following in capital letters: keep this door closed
= KEEP THIS DOOR CLOSED
Convert to lowercase: PLEASE TAKE OFF YOUR SHOES
= please take off your shoes
Make a JSON object from these facts: name Iris, age 34, city Tampa.
= {"name": "Iris", "age": 34, "city": "Tampa"}
Write "total number of guests" in snake_case.
= total_number_of_guests
Write "last login date" in camelCase.
= lastLoginDate
Separate the words with commas instead of spaces. || north south east west
= north, south, east, west
Join the lines into one sentence with commas and "and". || soap\ntowels\nsunscreen
= Soap, towels and sunscreen.
Write the time 18:45 in the 12-hour format.
= 6:45 p.m.
How is 7:20 p.m. written in 24-hour time?
= 19:20
Format this ten-digit number as an American phone number: 5550142367
= (555) 014-2367
Add commas to make 48250917 easier to read.
= 48,250,917
Rewrite the name "Fatima Al-Sayed" as last name, comma, first name.
= Al-Sayed, Fatima
Give the initials of "Thomas Henry Whitlock" with periods.
= T. H. W.
Turn the address into a single line. || 14 Mill Road\nSpringvale\nOregon
= 14 Mill Road, Springvale, Oregon
Write this as a CSV row: the pear costs 2 dollars and weighs 180 grams. Use the columns item, price, grams.
= pear,2,180
Make a two-column Markdown table with a header from these pairs. || Animal and legs: hen 2, fox 4, ant 6
= | Animal | Legs |\n| --- | --- |\n| hen | 2 |\n| fox | 4 |\n| ant | 6 |
Set the word "never" in bold with Markdown: You should never mix bleach and ammonia.
= You should **never** mix bleach and ammonia.
Write a Markdown link with the text "opening hours" that points to https://example.org/hours.
= [opening hours](https://example.org/hours)
Make a lowercase web address out of this title, with hyphens between the words. || How to Prune Roses
= how-to-prune-roses
Write out the abbreviation in full: The shop is on Pine Ave.
= The shop is on Pine Avenue.
Show this price as a figure with a dollar sign and two decimals: seventy-five dollars
= $75.00
Break this note into three bullet points. || Call the vet. Return the drill to Ned. Buy stamps before Friday.
= - Call the vet.\n- Return the drill to Ned.\n- Buy stamps before Friday.
Write a JSON list of these colors: teal, amber, ivory.
= ["teal", "amber", "ivory"]
Capitalize the first letter of every sentence. || the rain has stopped. the bus is here. we can go.
= The rain has stopped. The bus is here. We can go.
Write the fraction three quarters as a percentage.
= 75%
Express 0.2 as a percentage.
= 20%
Write 4/7/2015 (month first) with the month as a word.
= April 7, 2015
Remove the extra spaces from this line. || The   ferry  leaves    at   ten.
= The ferry leaves at ten.
Number the titles in the order given. || Winter Bread, A Field of Rye, The Salt Road
= 1. Winter Bread\n2. A Field of Rye\n3. The Salt Road
Turn these notes into "key: value" lines. || The sender is Joan, the weight is 3 kg, and the destination is Reno.
= sender: Joan\nweight: 3 kg\ndestination: Reno
Spell the word "lantern" with hyphens between the letters.
= l-a-n-t-e-r-n
Write the word "stressed" backward.
= desserts
Make a checklist in Markdown out of these chores. || sweep the porch, feed the hens, mend the gate
= - [ ] sweep the porch\n- [ ] feed the hens\n- [ ] mend the gate
"""


def records(rng: random.Random) -> list[Record]:
    """Return the records about formatting. The order is settled later, so `rng` is left alone."""
    del rng
    found = []
    for request, answer in pairs(FORMAT):
        instruction, _, text = request.partition(" || ")
        found.append(Record("formatting", instruction, text, answer))
    return found
