"""Makes docs/examples/tickets.csv: messages of customers, and the team that should answer each.

    python tools/examples/tickets.py > docs/examples/tickets.csv

Every message is put together from sentences written here, by one seed; the file is small, and made to be looked through. A few
rows have what real files have: a copy, an answer that was forgotten, an answer spelt otherwise.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Iterator

_OPENINGS = ("", "Hello. ", "Good morning, ", "Hi there, ", "To whom it may concern: ", "Hello again. ", "Dear team, ")
_CLOSINGS = (
    "",
    " Thank you.",
    " Please help.",
    " I am waiting for an answer.",
    " Kind regards, {name}.",
    " Can you look into it?",
)
_NAMES = ("Ada", "Bruno", "Chidi", "Dina", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kemal", "Lena")
_GOODS = (
    "lamp",
    "kettle",
    "bicycle",
    "desk",
    "tent",
    "backpack",
    "clock",
    "blanket",
    "teapot",
    "chair",
    "mirror",
    "radio",
)
_PLACES = ("Bern", "Porto", "Lagos", "Riga", "Quito", "Hanoi", "Turin", "Malmö", "Izmir", "Cork")

_MATTERS = {
    "billing": (
        "I was charged twice for the {goods}",
        "the invoice for my {goods} shows the wrong amount, {sum} instead of {other}",
        "my card was declined although there is money on the account",
        "I returned the {goods} weeks ago and the refund of {sum} has not come",
        "the discount of {percent} percent was not taken off the bill",
        "I need an invoice with our tax number for the {goods}",
        "why did the monthly fee go up to {sum}",
        "you took {sum} from my account and I never ordered anything",
    ),
    "delivery": (
        "the parcel with my {goods} has not arrived in {place}",
        "the tracking page has said the same for {days} days",
        "the {goods} came with a broken corner, the box was open",
        "the courier left my {goods} with a neighbour I do not know",
        "I moved to {place}, can the {goods} still be sent there",
        "you sent a {goods} and I had ordered a {second}",
        "one of the two parcels is missing, the one with the {goods}",
        "when will the {goods} be delivered, it was promised for last week",
    ),
    "account": (
        "I cannot sign in, the password is refused",
        "the mail to set a new password never comes",
        "please change my address to one in {place}",
        "somebody else seems to use my account",
        "I want to close my account and have my data deleted",
        "my name is spelt wrongly in the profile, it is {name}",
        "I have two accounts and would like to have one",
        "the code for signing in arrives {days} minutes too late",
    ),
    "repair": (
        "the {goods} stopped working after {days} days",
        "a part of the {goods} is loose and makes a noise",
        "the {goods} does not switch on any more",
        "how do I replace the battery of the {goods}",
        "a screw is missing from the {goods}, can I get one",
        "the {goods} gets very hot after {days} minutes",
        "the manual of the {goods} does not say how to clean it",
        "water got into the {goods} and now it flickers",
    ),
}
_NUM_EACH = 45


def rows(seed: int = 7) -> Iterator[tuple[str, str]]:
    """Messages with their teams, in an order drawn by `seed`; no two messages are the same but for one copy."""
    chance = random.Random(seed)
    written: dict[str, str] = {}
    for team, matters in _MATTERS.items():
        wanted = len(written) + _NUM_EACH
        while len(written) < wanted:
            written.setdefault(_message(chance, matters), team)
    drawn = list(written.items())
    chance.shuffle(drawn)
    drawn[30] = (drawn[30][0], "")
    drawn[61] = (drawn[61][0], drawn[61][1].title())
    return iter([*drawn, drawn[12]])


def _message(chance: random.Random, matters: tuple[str, ...]) -> str:
    goods, second = chance.sample(_GOODS, 2)
    amount, other = chance.sample(range(12, 240), 2)
    matter = chance.choice(matters).format(
        goods=goods,
        second=second,
        name=chance.choice(_NAMES),
        place=chance.choice(_PLACES),
        days=chance.randint(3, 19),
        percent=chance.choice((5, 10, 15, 20)),
        sum=f"{amount} euros",
        other=f"{other} euros",
    )
    asked = matter.startswith(("why", "can ", "how", "when"))
    opening = chance.choice(_OPENINGS)
    if not opening or opening.endswith(". "):
        matter = matter[0].upper() + matter[1:]
    return f"{opening}{matter}{'?' if asked else '.'}{chance.choice(_CLOSINGS).format(name=chance.choice(_NAMES))}"


if __name__ == "__main__":
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("message", "team"))
    writer.writerows(rows())
