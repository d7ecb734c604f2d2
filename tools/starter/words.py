"""Single words: synonyms and antonyms in context, plurals, odd ones out, analogies, parts of speech, usage."""

from __future__ import annotations

import random

from .record import Record, dress, pairs, rows

# sentence | word to replace | the sentence with a synonym
SYNONYM = """
The puppy was frightened by the thunder. | frightened | The puppy was scared by the thunder.
We had to cross a wide river. | wide | We had to cross a broad river.
He gave a brief answer. | brief | He gave a short answer.
The exam was difficult. | difficult | The exam was hard.
She purchased a secondhand piano. | purchased | She bought a secondhand piano.
The soup smells wonderful. | wonderful | The soup smells marvelous.
They reside in a small town near the coast. | reside | They live in a small town near the coast.
The trip was exhausting. | exhausting | The trip was tiring.
The detective noticed a tiny scratch on the lock. | tiny | The detective noticed a small scratch on the lock.
Please begin when you are ready. | begin | Please start when you are ready.
It was a foggy morning. | foggy | It was a misty morning.
The old man told an amusing story. | amusing | The old man told a funny story.
The workers demanded higher wages. | wages | The workers demanded higher pay.
I am certain that the gate was locked. | certain | I am sure that the gate was locked.
The mayor will assist the flood victims. | assist | The mayor will help the flood victims.
Her reply was rather rude. | rude | Her reply was rather impolite.
The road to the farm is narrow and crooked. | crooked | The road to the farm is narrow and winding.
He is a wealthy man with simple tastes. | wealthy | He is a rich man with simple tastes.
The children were quiet during the film. | quiet | The children were silent during the film.
We need to repair the roof before winter. | repair | We need to fix the roof before winter.
The diamond is extremely valuable. | valuable | The diamond is extremely precious.
An enormous tree fell across the tracks. | enormous | A huge tree fell across the tracks.
The clerk was polite to everyone. | polite | The clerk was courteous to everyone.
The weather changed rapidly. | rapidly | The weather changed quickly.
I often stroll along the harbor in the evening. | stroll | I often walk along the harbor in the evening.
The lecture was dull. | dull | The lecture was boring.
Their plan had one serious flaw. | flaw | Their plan had one serious defect.
She selected the ripest peaches. | selected | She chose the ripest peaches.
The firefighter was brave. | brave | The firefighter was courageous.
The company concealed its losses. | concealed | The company hid its losses.
We were weary after the long march. | weary | We were tired after the long march.
The water in the bay is transparent. | transparent | The water in the bay is clear.
The crowd yelled when the team scored. | yelled | The crowd shouted when the team scored.
The boy was furious about the broken toy. | furious | The boy was enraged about the broken toy.
It is forbidden to feed the monkeys. | forbidden | It is prohibited to feed the monkeys.
The evening was pleasant. | pleasant | The evening was enjoyable.
The house has been vacant for years. | vacant | The house has been empty for years.
She answered every question honestly. | honestly | She answered every question truthfully.
"""

SYNONYM_ASK = (
    'Replace "{1}" with a synonym: {0}',
    'Put another word in place of "{1}" without changing the meaning.',
    'Swap "{1}" for a word with the same meaning.',
    'Keep the meaning but avoid the word "{1}": {0}',
    'I do not want to use "{1}" again. How else could I put this? {0}',
    'Find a synonym for "{1}" and use it in the sentence.',
    'What could stand in place of "{1}" here? Write out the whole sentence: {0}',
    'Say this without "{1}" but with the same meaning: {0}',
)

ANTONYM = """
The blade was far too blunt. | blunt | Sharp
Food was scarce that winter. | scarce | Plentiful
He is a generous host. | generous | Stingy
The instructions were vague. | vague | Precise
She gave a humble speech. | humble | Proud
The lake is shallow near the dock. | shallow | Deep
The bridge is temporary. | temporary | Permanent
His excuse sounded plausible. | plausible | Implausible
The room felt cramped. | cramped | Spacious
They praised the young pianist. | praised | Criticized
The horse was tame. | tame | Wild
Attendance is compulsory. | compulsory | Optional
The team suffered a bitter defeat. | defeat | Victory
The rope was slack. | slack | Tight
She accepted the offer. | accepted | Rejected
The abbey has an ancient kitchen. | ancient | Modern
The streets were deserted. | deserted | Crowded
He seldom eats fish. | seldom | Often
The fabric is coarse. | coarse | Smooth
The witness was calm. | calm | Agitated
Prices increased in March. | increased | Decreased
The mixture was solid by morning. | solid | Liquid
My cousin is remarkably lazy. | lazy | Hardworking
The singer arrived late. | late | Early
The crust is tough and dry. | tough | Tender
The error was deliberate. | deliberate | Accidental
It was an expensive watch. | expensive | Cheap
The king was cruel. | cruel | Kind
The air in the cellar is damp. | damp | Dry
The guards allowed us to enter. | allowed | Forbade
Their arrival was sudden. | sudden | Gradual
The glass is full. | full | Empty
She has a major role in the play. | major | Minor
The patient is feeling worse. | worse | Better
The ship sank at dawn. | dawn | Dusk
She closed the meeting with a joke. | closed | Opened
The puzzle was simple. | simple | Complicated
The thunder was still distant. | distant | Near
"""

ANTONYM_ASK = (
    'Give the opposite of "{1}" as it is used here: {0}',
    'What is the opposite of "{1}" in this sentence? {0}',
    'Name an antonym for "{1}" as it is used below.',
    'Which word means the opposite of "{1}" in the sentence below?',
    'One word, please: the opposite of "{1}" in "{0}"',
    'Find an antonym for "{1}" in this context.',
    'Read the sentence and give a word opposite in meaning to "{1}": {0}',
    'I need an antonym of "{1}" that fits this sentence: {0}',
)

PLURAL = """
The leaf is yellow. | The leaves are yellow.
That mouse has eaten the cheese. | Those mice have eaten the cheese.
The child is asleep. | The children are asleep.
This knife was a wedding present. | These knives were wedding presents.
A wolf is howling in the hills. | Wolves are howling in the hills.
The church has a tall tower. | The churches have tall towers.
The woman drives a red tractor. | The women drive red tractors.
This potato needs peeling. | These potatoes need peeling.
The sheep is in the barn. | The sheep are in the barn.
My tooth hurts. | My teeth hurt.
The city was in ruins. | The cities were in ruins.
That man is my neighbor. | Those men are my neighbors.
The goose does not like the dog. | The geese do not like the dogs.
The box is full of books. | The boxes are full of books.
The crisis has passed. | The crises have passed.
The shelf is too high. | The shelves are too high.
A butterfly was resting on the window. | Butterflies were resting on the windows.
His foot is cold. | His feet are cold.
The hero was given a medal. | The heroes were given medals.
The bus runs every hour. | The buses run every hour.
This cactus blooms in May. | These cacti bloom in May.
The baby has a new blanket. | The babies have new blankets.
The loaf was still warm. | The loaves were still warm.
The passerby stopped to look. | The passersby stopped to look.
That monkey steals fruit. | Those monkeys steal fruit.
The thief was caught. | The thieves were caught.
"""

PLURAL_ASK = (
    "Rewrite the sentence in the plural: {0}",
    "Make the nouns plural and adjust the rest of the sentence.",
    "Change singular to plural: {0}",
    "How does this sentence read in the plural? {0}",
    "Put everything here into the plural.",
    "There is more than one now, so rewrite this: {0}",
    "Turn the singular nouns in the sentence into plurals.",
)

ODD = """
apple, pear, carrot, plum | Carrot is the odd one out, because the others are fruits.
violin, cello, harp, flute | Flute is the odd one out, because the others are string instruments.
Mars, Venus, Moon, Saturn | Moon is the odd one out, because the others are planets.
eagle, bat, sparrow, owl | Bat is the odd one out, because the others are birds.
copper, iron, oxygen, silver | Oxygen is the odd one out, because the others are metals.
Paris, Rome, Madrid, Europe | Europe is the odd one out, because the others are cities.
triangle, square, cube, circle | Cube is the odd one out, because the others are flat shapes.
whale, dolphin, shark, seal | Shark is the odd one out, because the others are mammals.
hammer, pillow, saw, drill | Pillow is the odd one out, because the others are tools.
2, 4, 7, 8 | 7 is the odd one out, because the others are even numbers.
run, jump, swim, blue | Blue is the odd one out, because the others are verbs.
shirt, glove, lamp, scarf | Lamp is the odd one out, because the others are clothes.
Nile, Amazon, Sahara, Danube | Sahara is the odd one out, because the others are rivers.
rose, oak, maple, birch | Rose is the odd one out, because the others are trees.
Monday, April, Friday, Sunday | April is the odd one out, because the others are days of the week.
spider, ant, beetle, wasp | Spider is the odd one out, because the others are insects.
milk, butter, cheese, honey | Honey is the odd one out, because the others are dairy products.
soccer, chess, rugby, hockey | Chess is the odd one out, because the others are team sports.
kilogram, meter, gram, ton | Meter is the odd one out, because the others are units of weight.
tea, coffee, bread, juice | Bread is the odd one out, because the others are drinks.
nurse, surgeon, dentist, carpenter | Carpenter is the odd one out, because the others work in medicine.
car, truck, boat, bus | Boat is the odd one out, because the others travel on roads.
arm, leg, hat, elbow | Hat is the odd one out, because the others are parts of the body.
Spanish, Brazil, Greek, Turkish | Brazil is the odd one out, because the others are languages.
poem, novel, essay, statue | Statue is the odd one out, because the others are kinds of writing.
penguin, ostrich, robin, emu | Robin is the odd one out, because the others are birds that cannot fly.
salmon, trout, frog, cod | Frog is the odd one out, because the others are fish.
sofa, window, chair, table | Window is the odd one out, because the others are pieces of furniture.
cinnamon, pepper, ginger, spinach | Spinach is the odd one out, because the others are spices.
river, lake, hill, pond | Hill is the odd one out, because the others are bodies of water.
"""

ODD_ASK = (
    "Which one does not belong? {0}",
    "Find the odd one out and say why: {0}",
    "Three of these go together. Which is the odd one? {0}",
    "Pick the odd one out.",
    "What is the odd one out in this list? {0}",
    "One of these is not like the others: {0}. Which one, and why?",
    "Name the item that does not fit with the rest.",
    "Spot the odd one out in this group.",
)

ANALOGY = """
Puppy is to dog as kitten is to | Cat
Author is to book as composer is to | Music
Hot is to cold as wet is to | Dry
Bird is to nest as bee is to | Hive
Finger is to hand as toe is to | Foot
Eye is to see as ear is to | Hear
Baker is to bread as tailor is to | Clothes
France is to Paris as Japan is to | Tokyo
Pen is to write as knife is to | Cut
Teacher is to school as doctor is to | Hospital
Day is to sun as night is to | Moon
Fish is to swim as bird is to | Fly
Minute is to hour as month is to | Year
Wheel is to car as wing is to | Airplane
Cow is to calf as sheep is to | Lamb
Rain is to umbrella as sun is to | Sunscreen
Clock is to time as thermometer is to | Temperature
Go is to went as see is to | Saw
Grape is to wine as milk is to | Cheese
King is to queen as prince is to | Princess
Up is to down as left is to | Right
Petal is to flower as page is to | Book
Brush is to painter as chisel is to | Sculptor
Lock is to key as bottle is to | Cap
Sheep is to wool as silkworm is to | Silk
Captain is to ship as pilot is to | Airplane
Three is to triangle as five is to | Pentagon
Cat is to meow as dog is to | Bark
Library is to books as museum is to | Exhibits
Foot is to sock as hand is to | Glove
"""

ANALOGY_ASK = (
    "Complete the analogy: {0} ...",
    "Finish this comparison with one word: {0} ...",
    "Fill in the missing word. {0} ___.",
    "{0} what?",
    "What word completes this? {0} ___.",
    "Supply the last word of the analogy: {0} ...",
    "One word is missing at the end: {0} ___. What is it?",
)

# what to pick | sentence | the words, in the order of the sentence
SPEECH = """
verb | The heron waited silently in the reeds. | waited
adjective | A rusty bucket stood beside the well. | rusty
adverb | He answered the question politely. | politely
nouns | The cat chased a moth around the lamp. | cat, moth, lamp
preposition | The keys are under the newspaper. | under
pronouns | She gave him the last ticket. | She, him
verbs | The crowd cheered and waved as the boats returned. | cheered, waved, returned
adjectives | The tall waiter brought a heavy tray of cold drinks. | tall, heavy, cold
conjunction | I wanted to go, but it was too late. | but
adverbs | The bus moved slowly and stopped suddenly. | slowly, suddenly
nouns | Rain fell on the roof of the station. | Rain, roof, station
proper nouns | Last summer Elena drove from Boston to Chicago. | Elena, Boston, Chicago
verb | My grandmother grows enormous pumpkins. | grows
adjectives | We sat in a quiet, dusty room. | quiet, dusty
prepositions | The ball rolled across the street and into a puddle. | across, into
pronoun | They left before sunrise. | They
verbs | Wash the lettuce, chop the onions, and heat the oil. | Wash, chop, heat
adverb | The old elevator hardly works. | hardly
nouns | The teacher put a globe on the desk. | teacher, globe, desk
adjective | Her brave decision surprised the town. | brave
interjection | Ouch, this plate is hot! | Ouch
conjunctions | Bring a sweater and boots, because the nights are cold. | and, because
adverbs | Mr. Quill always drives carefully. | always, carefully
proper nouns | Amir visited Lake Victoria with Grace in August. | Amir, Lake Victoria, Grace, August
verb | Fresh snow covered the parked cars. | covered
adjectives | The hungry gulls circled the small white boat. | hungry, small, white
prepositions | She walked through the gate with a basket of eggs. | through, with, of
nouns | A bridge links the island with the mainland. | bridge, island, mainland
"""

SPEECH_ASK = (
    "Pick out the {1}: {0}",
    "Which {1} can you find in this sentence? {0}",
    "Point out the {1} in the sentence below.",
    "Identify the {1}. {0}",
    "Find the {1} in this sentence.",
    "Write down the {1} in this sentence: {0}",
    "What {1} does the sentence contain?",
)

USAGE = """
reluctant
= The boy was reluctant to leave the warm kitchen.
borrow
= May I borrow your ladder until Sunday?
harvest
= The whole family helped with the grape harvest.
fragile
= Wrap the fragile cups in newspaper before you pack them.
although
= Although the hotel was cheap, the rooms were spotless.
echo
= His voice made an echo in the empty church.
nevertheless
= The map was old; nevertheless, it led us to the cabin.
curious
= A curious goat stuck its head through the car window.
postpone
= We had to postpone the picnic because of the storm.
shadow
= The tree cast a long shadow across the lawn.
stubborn
= My stubborn uncle refuses to ask for directions.
rely
= Many villages rely on a single well for their water.
thrifty
= She is so thrifty that she saves every piece of string.
overlook
= It is easy to overlook a missing comma.
compass
= The hikers used a compass to find their way through the fog.
vivid
= He has a vivid memory of his first day at school.
unless
= The shop will close unless it finds new customers.
bargain
= This coat was a bargain at twelve dollars.
whisper
= They had to whisper in the reading room.
drought
= The drought lasted so long that the river dried up.
meanwhile
= I set the table; meanwhile, Rosa stirred the sauce.
clumsy
= The clumsy waiter spilled soup on the mayor.
inherit
= She will inherit the farm from her grandparents.
peculiar
= There was a peculiar smell coming from the cellar.
rehearse
= The band meets on Tuesdays to rehearse new songs.
evidence
= The police found no evidence of a break-in.
accidentally
= I accidentally sent the message to my boss.
deadline
= The deadline for the essay is Friday at noon.
gratitude
= He baked a pie for the nurses to show his gratitude.
scarcely
= The path was so faint that we could scarcely see it.
"""

USAGE_ASK = (
    'Use the word "{0}" in a sentence.',
    'Write a sentence with the word "{0}" in it.',
    'Show me how "{0}" is used in a sentence.',
    'Can you give an example sentence for "{0}"?',
    'Make up a sentence in which "{0}" appears.',
    'I just learned "{0}" and want to see it in a sentence.',
    "Write one sentence that uses this word correctly.",
)


def records(rng: random.Random) -> list[Record]:
    """Return the records about words and how they relate to one another."""
    speech = [(sentence, part, answer) for part, sentence, answer in rows(SPEECH)]
    return [
        *dress("synonym", rows(SYNONYM), SYNONYM_ASK, rng),
        *dress("antonym", rows(ANTONYM), ANTONYM_ASK, rng),
        *dress("plural", rows(PLURAL), PLURAL_ASK, rng),
        *dress("odd one out", rows(ODD), ODD_ASK, rng),
        *dress("analogy", rows(ANALOGY), ANALOGY_ASK, rng),
        *dress("part of speech", speech, SPEECH_ASK, rng),
        *dress("word in a sentence", pairs(USAGE), USAGE_ASK, rng),
    ]
