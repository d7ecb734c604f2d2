"""Texts to read: what they feel, what they are about, whether they can be checked, what they mention, what they say."""

from __future__ import annotations

import random

from .record import Record, dress, pairs, rows

SENTIMENT = """
The lasagna arrived cold, and nobody apologized. | Negative
Best haircut I have had in years, and the coffee was free. | Positive
The package was delivered on Tuesday. | Neutral
I laughed from the first scene to the last. | Positive
The zipper broke the second time I wore it. | Negative
The room has two beds, a desk and a window facing the yard. | Neutral
Our guide was patient, funny and full of stories. | Positive
After an hour on hold, I was cut off. | Negative
This kettle is quiet, quick and easy to clean. | Positive
The store opens at nine and closes at seven. | Neutral
I would not recommend this hotel to my worst enemy. | Negative
What a treat to hear that choir live! | Positive
The manual is printed in English and French. | Neutral
Three days of rain and a leaking tent ruined the trip. | Negative
My grandson has not put the puzzle down since Sunday. | Positive
The soles came off after a single walk. | Negative
The course consists of twelve lessons. | Neutral
The staff remembered our names and our favorite table. | Positive
I expected a thriller and got two hours of yawning. | Negative
The new bus line runs past the stadium. | Neutral
Honestly, the cake was even better than my mother's. | Positive
The app loses my notes whenever I close it. | Negative
The lamp takes one standard bulb. | Neutral
It rained all weekend, but we had a wonderful time anyway. | Positive
The waiter sighed each time we asked for something. | Negative
The exhibition continues until the end of March. | Neutral
I finally found a backpack that does not hurt my shoulders. | Positive
The paint started peeling within a month. | Negative
Members may borrow up to ten books. | Neutral
The sunrise from the balcony was worth every penny. | Positive
The seller promised leather and sent me plastic. | Negative
The apartment is on the third floor. | Neutral
Fast delivery, fair price, and it fits perfectly. | Positive
Halfway through the concert, the sound failed, and it never came back. | Negative
You will need a screwdriver to change the battery. | Neutral
I was nervous about the dentist, but she could not have been kinder. | Positive
The fish smelled odd, so we left without eating. | Negative
The second volume covers the years from 1900 to 1920. | Neutral
"""

SENTIMENT_ASK = (
    "Is this text positive, negative or neutral?",
    "Classify the sentiment as positive, negative or neutral: {0}",
    "Label the sentiment of the text below: positive, negative or neutral.",
    "Would you call this comment positive, negative or neutral? {0}",
    "What is the tone of this remark: positive, negative or neutral?",
    "Decide whether the writer sounds positive, negative or neutral.",
    "Positive, negative or neutral? {0}",
    "Sort this customer comment into one of three groups: positive, negative, neutral.",
)

TOPIC = """
The striker scored twice in the final minutes and sent the visitors home. | Sports
The central bank left interest rates unchanged on Thursday. | Business
Simmer the lentils with cumin until they are soft, then stir in the spinach. | Food
The telescope has sent back sharp pictures of a distant galaxy. | Science
The senate will vote on the housing bill next week. | Politics
A night ferry links the two islands, and cabins can be booked online. | Travel
The sprinter pulled a muscle and will miss the championship. | Sports
Shares in the shoe company fell after weak sales. | Business
Whisk the eggs and sugar until pale before you fold in the flour. | Food
Researchers found that the fungus breaks down plastic in soil. | Science
The governor has named a new minister of education. | Politics
From the old harbor, a cable car takes visitors up to the fortress. | Travel
The quartet will perform two works by Haydn on Friday. | Music
The singer's third album was recorded in a barn. | Music
The home team lost its goalkeeper to a red card. | Sports
The aircraft maker plans to hire two thousand workers. | Business
A spoonful of vinegar keeps the red cabbage bright. | Food
Chemists have made a glue that works underwater. | Science
Turnout in the local election was higher than expected. | Politics
The guesthouse lies an hour's walk from the nearest road. | Travel
The drummer counted in, and the band played its oldest song. | Music
She won the third set and took the trophy for the second time. | Sports
The bakery chain wants to open forty more shops. | Business
Two parties agreed to form a coalition. | Politics
Fossils from the quarry belong to an unknown marine reptile. | Science
Bring cash, because few of the mountain huts accept cards. | Travel
Roast the peppers until their skins turn black. | Food
The pianist tuned the old instrument herself. | Music
"""

TOPIC_ASK = (
    "Choose the topic: Business, Food, Music, Politics, Science, Sports or Travel.",
    "Which section does this belong in: Business, Food, Music, Politics, Science, Sports or Travel? {0}",
    "Assign one topic (Business, Food, Music, Politics, Science, Sports, Travel) to the text.",
    "Business, Food, Music, Politics, Science, Sports or Travel: what is this sentence about?",
    "File this line under Business, Food, Music, Politics, Science, Sports or Travel: {0}",
    "What is the subject of the text below? Pick from Business, Food, Music, Politics, Science, Sports and Travel.",
)

OPINION = """
The bridge was opened in 1932. | Fact
Cats make better pets than dogs. | Opinion
Honey contains sugar. | Fact
Autumn is the loveliest season of the year. | Opinion
The committee has nine members. | Fact
Nobody should have to work on Sundays. | Opinion
Copper conducts electricity. | Fact
The new library is the ugliest building in town. | Opinion
Sweden borders Norway. | Fact
Reading on paper is more pleasant than reading on a screen. | Opinion
A soccer team has eleven players on the field. | Fact
The ticket prices are far too high. | Opinion
Bats are mammals. | Fact
Everyone ought to learn to play an instrument. | Opinion
The store is closed on public holidays. | Fact
Chocolate is the best flavor of ice cream. | Opinion
The leap day falls in February. | Fact
Her second novel is much more exciting than her first. | Opinion
Light takes about eight minutes to reach us from the sun. | Fact
It is rude to look at your phone during dinner. | Opinion
The heart is a muscle. | Fact
The old logo looked nicer. | Opinion
Rice is grown in flooded fields in many countries. | Fact
Chess is too slow to be fun. | Opinion
The violin has four strings. | Fact
The town needs a swimming pool more than a parking lot. | Opinion
"""

OPINION_ASK = (
    "Fact or opinion? {0}",
    "Is this statement a fact or an opinion?",
    "Say whether the following is a fact or an opinion: {0}",
    "Label the sentence as fact or opinion.",
    "Does this state a fact or express an opinion? {0}",
    "Decide if this is a fact or an opinion: {0}",
)

# what to extract | text | answer, in the order of the text
EXTRACT = """
names | Clara Voss sat between Hamid and old Mr. Petrov. | Clara Voss, Hamid, Mr. Petrov
dates | Classes run from September 4 to December 12, with a break on October 31. | September 4, December 12, October 31
numbers | The farm has 140 sheep, 12 goats and 3 donkeys. | 140, 12, 3
email addresses | Write to lena@example.org or, for refunds, to shop@example.com. | lena@example.org, shop@example.com
cities | The tour starts in Prague, stops in Vienna and ends in Trieste. | Prague, Vienna, Trieste
prices | A day pass costs $9, a week pass $40 and a locker $2. | $9, $40, $2
colors | She painted the door green, the shutters white and the fence blue. | green, white, blue
animals | Behind the barn we saw a fox, two deer and a hedgehog. | fox, deer, hedgehog
ingredients | Mix the flour with warm water, yeast and a pinch of salt. | flour, water, yeast, salt
times | The doors open at 6:30, the play begins at 7:15, and it ends by 10:00. | 6:30, 7:15, 10:00
countries | He has worked in Peru, Senegal and Denmark, but he was born in Malta. | Peru, Senegal, Denmark, Malta
days of the week | The clinic is open on Monday and Thursday, and sometimes on Saturday. | Monday, Thursday, Saturday
phone numbers | Call 555-0134 in the morning or 555-0178 after five. | 555-0134, 555-0178
job titles | The company is looking for a welder, an accountant and two drivers. | welder, accountant, drivers
musical instruments | The band has a fiddle, an accordion and a double bass. | fiddle, accordion, double bass
years | The mill was built in 1840, burned in 1902 and reopened in 1988. | 1840, 1902, 1988
names | Judge Moreno thanked Alice Kerr and her brother Tim. | Judge Moreno, Alice Kerr, Tim
fruits | For the jam we used plums, a few apricots and the last of the figs. | plums, apricots, figs
months | Tulips open in April, roses in June and asters in September. | April, June, September
languages | The brochure is available in Dutch, Polish, Arabic and Hindi. | Dutch, Polish, Arabic, Hindi
numbers | Out of 60 runners, 48 finished and 5 broke the old record. | 60, 48, 5
rivers | The Moselle joins the Rhine at Koblenz, far from the Elbe. | Moselle, Rhine, Elbe
tools | You will need a spade, a bucket and a pair of shears. | spade, bucket, shears
web addresses | Book at www.example.com; the rules are on www.example.org. | www.example.com, www.example.org
cities | Flights from Nairobi to Mumbai now stop in Doha. | Nairobi, Mumbai, Doha
dates | The lease was signed on May 2, 2019, and ended on May 1, 2022. | May 2, 2019; May 1, 2022
family members | My aunt made the cake, my cousin lit the candles, and my father sang. | aunt, cousin, father
vegetables | The soup contains leeks, carrots, celery and a whole chicken. | leeks, carrots, celery
clothes | He left his gloves on the train and his scarf in the taxi, but kept his hat. | gloves, scarf, hat
planets | Tonight Venus sets early, while Mars and Saturn stay up past midnight. | Venus, Mars, Saturn
drinks | They ordered one lemonade, two coffees and a pot of tea with their pancakes. | lemonade, coffees, tea
trees | The path runs past a birch and two willows to an ancient yew. | birch, willows, yew
prices | The stool was $25, but I paid $18 and got a cushion for $4. | $25, $18, $4
names | The letter from Dr. Adeyemi to Sofia Lund was found by a janitor. | Dr. Adeyemi, Sofia Lund
pieces of furniture | Movers dropped the wardrobe, scratched the bookcase and lost a stool. | wardrobe, bookcase, stool
sports | In winter she skis, but in summer she prefers tennis, rowing and golf. | tennis, rowing, golf
birds | A heron stood in the shallows while swallows and a kingfisher darted over it. | heron, swallows, kingfisher
times | Take one tablet at 8 a.m. and another at 9 p.m. | 8 a.m., 9 p.m.
metals | The crown is made of gold and silver, but the chain is only brass. | gold, silver, brass
materials | The kite is made of paper, bamboo and cotton thread. | paper, bamboo, cotton
"""

EXTRACT_ASK = (
    "List the {1} mentioned in the text.",
    "Extract the {1}.",
    "Which {1} appear in this sentence?",
    "Find all {1} in the following.",
    "Pull out the {1}, separated by commas.",
    "What {1} does the text mention? {0}",
    "Name the {1} in the order in which they appear.",
    "Go through the text and note the {1}.",
)

SUMMARY = """
The town council voted on Tuesday to close Bridge Street to cars on weekends. Shop owners had worried about losing
  customers, but a trial in the spring brought more visitors than usual. The new rule starts in July.
= After a successful trial, the town will close Bridge Street to cars on weekends from July.
Hummingbirds have to eat almost all the time. Their wings may beat fifty times a second, which takes enormous energy.
  At night, when they cannot feed, they slow their bodies down to survive until morning.
= Hummingbirds burn so much energy that they feed constantly and slow down their bodies at night.
Marta wanted to learn the accordion, but lessons were expensive. She found an old instrument at a flea market and
  taught herself with library books. Two years later she plays at weddings.
= Marta taught herself the accordion on an old instrument and now plays at weddings.
Sourdough needs no packaged yeast. A mixture of flour and water is left to stand, and wild yeasts and bacteria begin to
  grow in it. They raise the dough and give the bread its sour taste.
= Sourdough rises and gets its taste from wild yeasts and bacteria that grow in flour and water.
Our office printer has been repaired four times this year. Each repair cost more than a hundred dollars. A new printer
  would cost about three hundred and come with a guarantee.
= Replacing the office printer would be cheaper than continuing to repair it.
In the desert, days are hot, but nights can be bitterly cold. The dry air and clear skies let the heat escape as soon
  as the sun goes down. Travelers are often surprised that they need a warm coat.
= Deserts turn cold at night because dry air and clear skies let the heat escape.
The lighthouse at Cape Dorn was built in 1871. A keeper lived there until 1984, when the lamp was automated. Today the
  keeper's house is a small museum run by volunteers.
= The lighthouse at Cape Dorn, built in 1871 and automated in 1984, now houses a museum.
Students who slept eight hours before a test did better than those who studied through the night. The sleepers also
  remembered more a week later. The teachers now advise against late studying.
= A good night's sleep helps students more in tests than studying all night.
The orchard lost half of its blossoms in the April frost. The owners lit small fires between the rows and saved the
  rest. They expect a modest harvest and higher prices.
= Frost destroyed half of the orchard's blossoms, so a small harvest and higher prices are expected.
Glass can be melted and reshaped again and again without losing quality. Making new bottles from old ones also takes
  less energy than starting from sand. Sorting by color is the main difficulty.
= Glass can be recycled endlessly and saves energy, though it has to be sorted by color.
Mr. Okafor drove the school bus for thirty-one years and never missed a day. On his last trip the children gave him a
  book of drawings. He says that he will read it every morning instead of driving.
= The children gave Mr. Okafor a book of drawings when he retired after thirty-one years as a bus driver.
The city library will lend more than books this fall. Members can borrow tools, sewing machines and camping gear for a
  week at a time. The idea came from a survey of readers.
= Following a survey, the city library will also lend tools, sewing machines and camping gear.
Octopuses can change color in less than a second. Their skin holds thousands of tiny sacs of pigment that open and
  close. They use this to hide, to warn rivals and to attract mates.
= Octopuses change color quickly by means of pigment sacs, in order to hide and to communicate.
We walked to the falls early to avoid the crowds. It started to drizzle, and the path became slippery. By noon we
  turned back without having seen the water.
= Rain and a slippery path made us turn back before we reached the falls.
The first bicycles had no pedals. Riders sat on a wooden frame and pushed themselves along with their feet. Pedals,
  chains and rubber tires came later in the nineteenth century.
= Early bicycles were pushed along with the feet, and pedals, chains and tires came later.
The bakery on Third Street has a new rule. Bread left over at six o'clock goes to the shelter instead of the trash.
  Last month that came to nearly four hundred loaves.
= The bakery on Third Street now gives its unsold bread to the shelter.
A good compost heap needs both wet and dry material. Kitchen scraps alone turn slimy, while leaves alone hardly rot.
  Mixing the two and turning the heap lets air in and speeds things up.
= Compost works best when wet and dry material are mixed and turned.
Dana's flight was canceled because of fog. The airline offered her a hotel room, but she took a night bus instead. She
  arrived only two hours later than planned.
= When fog canceled her flight, Dana took a night bus and arrived only two hours late.
The museum's oldest clock has run since 1702. It is wound by hand each Friday, and it loses about a minute a week. The
  staff refuses to fit it with an electric motor.
= The museum's clock from 1702 is still wound by hand and keeps fairly good time.
Many people think that camels store water in their humps. In fact the humps are made of fat. The animal can live on
  this fat when food is hard to find.
= Camels' humps hold fat for times without food, not water.
The factory used to end work at five, and the roads were jammed. Since January it has let people leave at any time
  between three and six. The traffic jams have almost disappeared.
= Flexible working hours at the factory have nearly ended the traffic jams.
Rosa's grandmother left her a box of recipes written in Italian. Rosa did not speak the language, so she took an
  evening class. Now she cooks from the box every Sunday.
= Rosa learned Italian in order to cook from her grandmother's recipes.
The new footbridge sways slightly in strong wind. Engineers say that it is safe and was designed to move. Signs will be
  put up to reassure walkers.
= The footbridge is safe although it sways, and signs will explain this to walkers.
Ants leave a trail of scent when they find food. Others follow the trail and make it stronger. When the food is gone,
  the scent fades and the ants stop coming.
= Ants guide one another to food with scent trails, which fade when the food is gone.
The theater group had planned to perform outdoors. Forecasters promised a storm, so the group moved everything into the
  gym. The storm never came, but the show was sold out.
= The theater group moved its sold-out show indoors because of a storm that never came.
Tea reached Europe in the early seventeenth century and was very expensive at first. The rich kept it in locked boxes.
  As trade grew, prices fell, and it became an everyday drink.
= Tea was a luxury when it came to Europe but became an everyday drink as prices fell.
"""

SUMMARY_ASK = (
    "Summarize the paragraph in one sentence.",
    "What is the main point of this text? Answer in one sentence.",
    "Give a one-sentence summary of the text below.",
    "Sum this up in a single sentence.",
    "Boil the passage down to one sentence.",
    "I have no time to read this. What does it say, in one sentence?",
    "State the gist of the following paragraph in a sentence.",
)

# question | text | answer
PASSAGE = """
Why did Lena miss the train? | Lena set her alarm for six, but the power went out overnight. She woke at eight and
  missed the train.
= Lena missed the train because the power went out and her alarm failed.
How many jars did they sell? | The twins made thirty jars of jam. They kept six, gave four to friends and sold the
  rest.
= They sold twenty jars.
What does the baker do on Mondays? | The baker works six days a week. On Mondays he closes the shop and goes fishing.
= On Mondays the baker goes fishing.
Who found the ring? | Mrs. Bell lost her ring in the garden. Her grandson looked all morning, but the dog dug it up.
= The dog found the ring.
Where is the spare key kept? | Our old hiding place was under the mat. The spare key is now with the florist next door.
= The spare key is kept with the florist next door.
When does the pool open? | The pool opens at ten on weekdays. During the school holidays, like this week, it opens at
  eight.
= The pool opens at eight this week.
What color was the boat? | Two boats lay at the dock. The white one belonged to the doctor, and ours was green.
= Our boat was green.
Which route is faster? | The coast road takes forty minutes but is lovely. The highway takes twenty-five.
= The highway is faster.
What did Omar forget? | Omar packed the tent, the stove and the sleeping bags. Only at the lake did he think of
  matches.
= Omar forgot the matches.
Why is the gym closed? | The gym floor is being sanded. It will be closed until Friday, so volleyball is canceled.
= The gym is closed because its floor is being sanded.
How did the cat get in? | The door was locked and the windows were shut. The cat had squeezed through the mail slot.
= The cat got in through the mail slot.
How old was Ada when she started to paint? | Ada was born in 1921. She started to paint in 1990, after she retired.
= Ada was about 69 when she started to paint.
What should you do if the alarm sounds? | If the alarm sounds, leave by the stairs and wait in the parking lot. Do not
  use the elevator.
= You should leave by the stairs and wait in the parking lot.
Who won the race? | Kofi led for most of the race, but he slipped in the last turn. Jun passed him and won by a second.
= Jun won the race.
What do the villagers use the mud for? | After the flood, the villagers collect the mud. Dried in the sun, it makes
  bricks.
= The villagers use the mud to make bricks.
How long did the repair take? | The plumber came at nine. He found a cracked pipe, replaced it, and left at half past
  ten.
= The repair took an hour and a half.
What was wrong with the soup? | The cook had mistaken the sugar for salt. Everyone was polite, but nobody finished the
  soup.
= The soup had sugar in it instead of salt.
Where did the couple meet? | They lived on the same street for years, yet they first met on a ferry to Sicily.
= The couple met on a ferry to Sicily.
Which instrument did she learn first? | She is famous as a drummer, but she began on the flute at the age of five.
= She learned the flute first.
What is the prize? | The best drawing will hang in the town hall, and the winner gets a year of free swimming.
= The prize is a year of free swimming.
Why do the farmers keep geese? | Dogs are expensive to feed. The farmers keep geese instead, which shout at any
  stranger.
= The farmers keep geese to warn them of strangers.
What has to be done before painting? | Do not start to paint at once. Wash the wall, fill the holes and let everything
  dry.
= The wall has to be washed, the holes filled, and everything left to dry.
How much did the lamp cost in the end? | The lamp was marked at forty dollars. Because of a scratch, they took off ten.
= The lamp cost thirty dollars in the end.
What made the driver stop? | A branch lay across the lane, but it was the owl sitting on it that made the driver stop.
= An owl sitting on a branch made the driver stop.
Who will teach the class next term? | Mr. Ito is leaving in June. Next term Ms. Novak will take over his class.
= Ms. Novak will teach the class next term.
What do you need to join the club? | Anyone over sixteen may join the club. Bring a photo; there is no fee.
= You need a photo and must be over sixteen.
"""

PASSAGE_ASK = (
    "{1}",
    "Answer from the text: {1}",
    "Read the text and answer the question. {1}",
    "According to the passage below: {1}",
    "{1} Use only what the text says.",
    "Use the passage to answer this: {1}",
)


def records(rng: random.Random) -> list[Record]:
    """Return the records that ask about a text."""
    extract = [(text, what, answer) for what, text, answer in rows(EXTRACT)]
    passages = []
    for asked, answer in pairs(PASSAGE):
        question, text = asked.split(" | ")
        passages.append((text, question, answer))
    return [
        *dress("sentiment", rows(SENTIMENT), SENTIMENT_ASK, rng),
        *dress("topic", rows(TOPIC), TOPIC_ASK, rng),
        *dress("fact or opinion", rows(OPINION), OPINION_ASK, rng),
        *dress("extraction", extract, EXTRACT_ASK, rng),
        *dress("summary", pairs(SUMMARY), SUMMARY_ASK, rng),
        *dress("passage question", passages, PASSAGE_ASK, rng),
    ]
