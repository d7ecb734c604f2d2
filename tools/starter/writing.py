"""Things to write from scratch: definitions, comparisons, explanations, instructions, scenes, messages, ideas."""

from __future__ import annotations

import random

from .record import Record, dress, pairs

DEFINITION = """
glacier
= A glacier is a large mass of ice that moves slowly over land.
mortgage
= A mortgage is a loan for buying a house, with the house itself as security.
irrigation
= Irrigation is the supply of water to fields so that crops can grow.
hibernation
= Hibernation is a long, deep rest in which some animals spend the winter.
inflation
= Inflation is a general rise in prices over time.
metaphor
= A metaphor is a figure of speech that describes one thing as if it were another.
democracy
= Democracy is a form of government in which the people choose their leaders by voting.
peninsula
= A peninsula is a piece of land almost completely surrounded by water.
nutrient
= A nutrient is a substance that a living thing needs in order to live and grow.
biography
= A biography is the story of a person's life written by someone else.
fossil
= A fossil is the preserved remains or trace of a plant or animal that lived long ago.
budget
= A budget is a plan for how to spend and save money over a period of time.
vaccine
= A vaccine is a substance that trains the body to fight off a disease.
orbit
= An orbit is the curved path of one object around another in space.
alibi
= An alibi is proof that a person was somewhere else when a crime took place.
satire
= Satire is writing or art that uses humor to criticize people or society.
pollen
= Pollen is the fine powder that flowers produce to fertilize other flowers.
refugee
= A refugee is a person who has fled their country to escape danger.
algorithm
= An algorithm is a fixed series of steps for solving a problem.
recession
= A recession is a period in which a country's economy shrinks.
ecosystem
= An ecosystem is a community of living things together with the place they live in.
prejudice
= Prejudice is an opinion about people formed without knowing them.
archipelago
= An archipelago is a group of islands.
ferment
= To ferment is to change sugar into acid or alcohol with the help of microbes.
census
= A census is an official count of a country's population.
dialect
= A dialect is a form of a language spoken in a certain region or group.
insulation
= Insulation is material that keeps heat, cold, sound or electricity from passing through.
landlord
= A landlord is a person who rents out a house, an apartment or land.
mirage
= A mirage is an optical illusion in which hot air makes it look as if there were water ahead.
patent
= A patent is the exclusive right to make and sell an invention for a certain time.
photosynthesis
= Photosynthesis is the process by which plants use light to make food from water and carbon dioxide.
rehearsal
= A rehearsal is a practice session before a performance.
scaffold
= A scaffold is a temporary structure that lets workers reach the high parts of a building.
tributary
= A tributary is a stream or river that flows into a larger one.
verdict
= A verdict is the decision of a jury or judge at the end of a trial.
volunteer
= A volunteer is a person who does work without being paid for it.
erosion
= Erosion is the wearing away of soil or rock by wind, water or ice.
deposit
= A deposit is a sum paid in advance that is returned or counted toward the full price.
eclipse
= An eclipse is an event in which one body in space hides or darkens another.
bilingual
= A bilingual person can speak two languages well.
"""

DEFINITION_ASK = (
    'Define "{0}" in one sentence.',
    'What does "{0}" mean?',
    'What is a short definition of "{0}"?',
    'Explain the word "{0}" in a sentence.',
    'How would a dictionary define "{0}"?',
    'I came across the word "{0}" in a book. What does it mean?',
    'Write a definition of "{0}" in one sentence.',
    'In plain words, what is meant by "{0}"?',
)

COMPARISON = """
a lake and a pond
= A lake is larger and deeper than a pond. In a shallow pond, sunlight often reaches the bottom, so plants can grow all
  the way across.
butter and margarine
= Butter is made from cream, while margarine is made mostly from vegetable oils. Both can be spread on bread and used
  in baking.
a novel and a short story
= A novel is long and can follow many characters over years. A short story is brief and usually centers on one event.
frogs and toads
= Frogs usually have smooth, moist skin and long legs for jumping. Toads have drier, bumpier skin and tend to walk or
  hop short distances.
trains and airplanes
= Airplanes are faster over long distances, but trains usually produce less pollution and often stop in the middle of
  town.
weather and climate
= Weather is what the air is doing today, such as rain or wind. Climate is the usual pattern of weather in a place over
  many years.
a debit card and a credit card
= A debit card takes money from your account right away. A credit card lets you borrow the money and pay it back later.
alligators and crocodiles
= Alligators have broad, rounded snouts, while those of crocodiles are narrower and more pointed. When its mouth is
  closed, a crocodile also shows more of its lower teeth.
owning and renting a home
= An owner has to pay for repairs but can change the home freely. A tenant has less freedom but can move more easily.
violins and guitars
= A violin is usually played with a bow and has no frets. A guitar is plucked or strummed, and frets mark the notes on
  its neck.
paper books and e-books
= Paper books need no battery and are easy to lend. E-books weigh almost nothing, and hundreds of them fit on one
  device.
stars and planets
= Stars make their own light in their hot cores. Planets are cooler bodies that travel around a star and reflect its
  light.
cotton and wool
= Cotton comes from a plant and feels cool, so it suits summer clothes. Wool comes from sheep and keeps the body warm
  even when it is damp.
baking and frying
= Baking cooks food with the dry heat of an oven and needs little fat. Frying cooks it in hot oil, which is quicker but
  richer.
moths and butterflies
= Most butterflies fly by day and have thin feelers with small knobs at the ends. Most moths fly at night and have
  feathery or threadlike feelers.
a comedy and a tragedy
= A comedy aims to amuse and usually ends happily. A tragedy deals with serious matters and ends in loss or death.
cash and cards
= Cash works even when the power is out, but it can be lost. Cards are handy for large sums and can be blocked if they
  are stolen.
a hill and a mountain
= A hill is lower and gentler than a mountain. A mountain is taller and steeper, and it often has a distinct peak.
bacteria and viruses
= Bacteria are living cells that can multiply on their own, and many are harmless. Viruses are far smaller and can only
  multiply inside the cells of other organisms.
email and letters
= Email arrives within seconds and costs almost nothing. A letter takes days, but it feels more personal and can be
  kept in a drawer.
a solar and a lunar eclipse
= In a solar eclipse, the moon hides the sun. In a lunar eclipse, the Earth's shadow falls on the moon.
apples and oranges
= Apples grow in cool climates and can be eaten with their skin. Oranges need warmth, have a thick peel, and contain
  more vitamin C.
a bicycle and a scooter
= You sit on a bicycle and pedal, which makes it better for long distances. You stand on a scooter and push, but it is
  smaller and easier to carry.
the sea and a swimming pool
= The sea is salty and has waves, currents and wildlife. A pool is calm, its water is treated, and it is usually
  watched by a lifeguard.
gas and electric stoves
= A gas stove has a flame and reacts at once when you turn it down. An electric stove is easier to clean and does not
  produce fumes.
"""

COMPARISON_ASK = (
    "Compare {0}.",
    "How are {0} different?",
    "Describe how {0} differ.",
    "What is the difference between {0}?",
    "In two sentences, compare {0}.",
    "How do {0} differ from each other?",
    "Briefly contrast {0}.",
    "I mix up {0}. How do they differ?",
)

EXPLAIN = """
Why does the setting sun look red?
= When the sun is low, its light has to cross much more air to reach us. The air scatters the blue part away, and
  mostly red and orange light is left.
How does soap remove grease?
= One end of a soap molecule clings to fat and the other to water. The soap surrounds the grease in tiny drops, and the
  water carries them away.
Explain to a child why we have seasons.
= The Earth is tilted, like a leaning top. When our half leans toward the sun, we get long, warm days and call it
  summer. Half a year later it leans away, and we have winter.
Why do leaves change color in the fall?
= In the fall, trees stop making the green substance in their leaves. As the green fades, yellow and orange colors that
  were hidden all summer begin to show.
How does a refrigerator keep food cold?
= A refrigerator pumps a fluid through its pipes. The fluid takes up heat inside as it evaporates and gives it off at
  the back as it turns liquid again. In this way heat is moved out of the box.
Why does bread rise?
= Yeast feeds on the sugars in the dough and gives off carbon dioxide. The gas is trapped in small bubbles, and these
  make the dough swell.
Tell me in simple words how a vaccine works.
= A vaccine shows your body a harmless piece or copy of a germ. Your body learns to recognize it and gets its defenses
  ready. If the real germ comes, it can be stopped quickly.
How do airplanes stay in the air?
= The wings are shaped and angled so that they push the air down as the airplane moves forward. The air pushes back up
  on the wings, and this lift carries the weight.
Why do we dream?
= Nobody knows for certain. Many researchers think that dreams appear while the brain sorts memories and feelings
  during sleep.
What makes popcorn pop?
= Each kernel holds a little water inside a hard shell. When it is heated, the water turns to steam, and the pressure
  grows until the shell bursts.
How does a compass find north?
= A compass needle is a small magnet that can turn freely. The Earth itself acts like a huge magnet, so the needle
  lines up with it and points roughly north.
Explain in a few sentences why the sea is salty.
= Rain slowly dissolves salts out of rocks, and rivers carry them to the sea. When seawater evaporates, the salt stays
  behind. Over millions of years it has built up.
Why do onions make us cry?
= Cutting an onion breaks its cells and releases a sharp gas. The gas irritates our eyes, and they make tears to wash
  it away.
What happens when we yawn?
= When we yawn, we open our mouths wide, take a deep breath and stretch the muscles of the jaw. People yawn most when
  they are tired or bored, but the purpose is not fully understood.
How do bats find their way in the dark?
= Many bats send out very high calls and listen for the echoes. From the echoes they can tell where a wall or an insect
  is and how far away it is.
Explain what an echo is.
= An echo is sound that has bounced off something, such as a cliff. It takes time to travel there and back, so we hear
  it a moment after the first sound.
Why should we wash our hands before eating?
= Our hands pick up germs from everything they touch. Washing them with soap removes most of the germs, so fewer of
  them get into our food.
How are pearls made?
= A pearl begins when something small gets inside an oyster's shell. The oyster covers it with layer upon layer of the
  smooth material that lines the shell. After some years there is a pearl.
Why does metal feel colder than wood in the same room?
= Both have the same temperature, but metal carries heat away from your hand much faster. Your skin notices the lost
  heat and tells you that the metal is cold.
In simple terms, how does a bank earn money from loans?
= A bank lends money and asks for more back than it lent. The extra money is called interest. Out of it the bank pays
  its savers and its costs, and the rest is profit.
How do tides work?
= The moon's gravity pulls on the oceans and makes the water bulge on the side facing it and on the opposite side. As
  the Earth turns, coasts pass through these bulges, and the water rises and falls.
Why do cats purr?
= Cats often purr when they are content, for example while being stroked. They also purr when they are hurt or nervous,
  perhaps in order to calm themselves.
Explain why it is easier to float in salt water.
= Salt makes water denser, so a given amount of it weighs more. Your body has to push less of it aside to be held up,
  and you float higher.
What is the purpose of a country's constitution?
= A constitution sets out how a country is governed and what its government may and may not do. It also protects the
  basic rights of the people.
How does a seed become a plant?
= When a seed gets water, warmth and air, it swells and splits. A root grows down, and then a shoot grows up toward the
  light. Until it has leaves, the plant lives on food stored in the seed.
Why do we put salt on icy roads?
= Salt lowers the temperature at which water freezes. Ice that touches the salt melts even a little below zero degrees
  Celsius, and the road becomes less slippery.
How does a rainbow form?
= Sunlight enters drops of rain, is bent, and reflects off the back of each drop. The colors are bent by different
  amounts, so they leave the drops spread out in a band.
Why does the moon seem to change its shape?
= The sun always lights one half of the moon. As the moon travels around us, we see more or less of that lit half, and
  so it looks like a crescent, a half or a full disk.
What is supply and demand? Explain it with an example.
= Prices depend on how much of a thing there is and how many people want it. If frost ruins the strawberries, there are
  few to buy, and the price goes up. After a good harvest, it falls.
Why is it hard to breathe on a high mountain?
= The higher you climb, the thinner the air becomes. Each breath then holds less oxygen, so your body has to work
  harder to get enough of it.
"""

MESSAGE = r"""
Write a text to tell a friend that you will be twenty minutes late for lunch.
= Hi! I'm running about twenty minutes late for lunch. Sorry, and please order without me if you're hungry.
Write a short email to ask a teacher for two more days for an essay.
= Dear Ms. Alvarez,\n\nI have been ill this week and have not finished my essay. May I hand it in on Friday instead of
  Wednesday?\n\nThank you,\nJoel
Draft a note asking the neighbors to keep their dog quiet at night.
= Dear neighbors, your dog has been barking after midnight this week, and we find it hard to sleep. Could you please
  keep him inside at night? Thank you very much!
Compose a two-sentence thank-you note for a hand-knitted scarf.
= Thank you so much for the beautiful scarf. It is warm and soft, and I have worn it every day this week.
I found a wallet in the park. Write a notice to put on the bulletin board.
= Found: a brown wallet, near the pond in the park, on Sunday afternoon. To get it back, call 555-0119 and tell me what
  is inside.
Write a message to invite your colleagues to a farewell breakfast.
= Dear all, Friday is my last day here, and I would love to say goodbye over breakfast. Please join me in the kitchen
  at nine; there will be fresh rolls and coffee.
Send your landlord a brief message about a broken heater.
= Hello Mr. Brandt, the heater in our living room stopped working last night. Could you please send someone to repair
  it this week? Thank you, Mina Cole
Write a birthday greeting for a coworker who loves gardening.
= Happy birthday, Ines! May your tomatoes be sweet, your roses tall and your weeds few this year.
Draft a polite reply to turn down a party invitation.
= Thank you for inviting me to your party. I am afraid I already have plans that evening, but I hope you have a
  wonderful time.
Cancel a dentist's appointment by email and ask for a new date.
= Hello,\n\nUnfortunately, I have to cancel my appointment on Monday at ten. Could I come the following week
  instead?\n\nKind regards,\nVictor Lane
Write a reminder to the team that timesheets are due on Friday.
= Hi everyone, just a reminder that timesheets are due on Friday at noon. Please send yours in on time. Thanks!
Apologize in a message for breaking a borrowed umbrella.
= Hi Kim, I'm so sorry, but the wind broke your umbrella yesterday. I will bring you a new one on Thursday.
Write a message of congratulations to someone who has passed a driving test.
= Congratulations on passing your driving test! All that practice has paid off. Drive safely and enjoy the road.
Write a sign for a shop that is closed for a family wedding.
= We are closed on Saturday, June 8, for a family wedding. We will be back on Monday at nine. Thank you for your
  understanding!
Ask a hotel by email whether it has a quiet room for two nights in March.
= Hello,\n\nDo you have a quiet double room for two nights from March 14 to 16? Please also let me know the price with
  breakfast.\n\nBest regards,\nTessa Moore
Leave a note for a house sitter about feeding the cat.
= Hi Jo, please give Pepper half a can of food at seven in the morning and again at six in the evening. Fresh water
  goes in the blue bowl. Thanks for looking after her!
Write a short complaint about a chair that arrived with a missing leg.
= Hello,\n\nThe chair I ordered arrived today with only three legs. Please send the missing leg as soon as possible, or
  refund the price.\n\nSincerely,\nRay Dunn
Write a get-well message for a friend with a broken ankle.
= I was sorry to hear about your ankle. Rest well, let others carry things for you, and call me if you need company.
  Get well soon!
Ask your sister by text to buy milk on her way home.
= Hi! Could you please pick up a carton of milk on your way home? I'll pay you back tonight.
Announce a bake sale in two or three sentences.
= Come to our bake sale on Saturday from ten to two in the school yard! There will be pies, cookies and bread. All the
  money goes to the new playground.
Write to a customer that a parcel has been delayed by snow.
= Dear customer, heavy snow has delayed your parcel by about two days. We are sorry for the wait and will write again
  as soon as it is on its way.
Introduce yourself in a message to your new neighbors.
= Hello! I'm Pavel, and I have just moved into number 12 with my daughter. If our boxes are in your way, please let us
  know. We look forward to meeting you.
"""

SUGGESTION = r"""
Suggest three ways to save water at home.
= - Take short showers instead of baths.\n- Fix dripping faucets.\n- Run the dishwasher only when it is full.
Name three things to pack for a day at the beach.
= - A towel\n- Sunscreen\n- A bottle of water
Give me three ideas for a rainy afternoon with children.
= - Build a fort out of blankets.\n- Bake cookies together.\n- Put on a puppet show with old socks.
List three tips for sleeping better.
= - Go to bed at the same time every night.\n- Keep the bedroom cool and dark.\n- Put away your phone an hour before
  bed.
What are three good questions to ask at a job interview?
= - What does a typical day look like?\n- Who would I be working with?\n- What should I have achieved after three
  months?
Suggest three gifts for someone who loves to cook.
= - A good kitchen knife\n- A set of unusual spices\n- A cast-iron pan
How can I make my commute less boring? Give three ideas.
= - Listen to an audiobook.\n- Learn ten words of a new language.\n- Try a different route once a week.
Name three breakfasts that take less than five minutes.
= - Yogurt with berries\n- Toast with peanut butter\n- A banana and a handful of nuts
Suggest three names for a small bakery.
= - The Warm Crust\n- Flour and Sun\n- Little Loaf
Offer three pieces of advice to someone who is learning to swim.
= - Start in water where you can stand.\n- Practice breathing out under the surface.\n- Never swim alone.
Give three ways to use up stale bread.
= - Toast cubes of it for a salad.\n- Grind it into crumbs.\n- Soak it in egg and milk and fry it.
What three things should I check before a long drive?
= - The pressure of the tires\n- The level of the oil\n- The lights
List three ways to keep houseplants healthy.
= - Water them only when the soil feels dry.\n- Turn them toward the light now and then.\n- Wipe the dust off their
  leaves.
Suggest three titles for a story about a lost kitten.
= - Paws in the Rain\n- The Cat Nobody Called\n- Nine Streets from Home
Name three hobbies that cost almost nothing.
= - Walking\n- Drawing\n- Singing in a choir
How can a shy person make friends in a new town? Suggest three ways.
= - Join a club for something you enjoy.\n- Say hello to the same people every day.\n- Help out at a local event.
Give three tips for taking better photographs.
= - Keep the sun behind you.\n- Move closer to your subject.\n- Hold the camera level.
Suggest three games that two people can play with pencil and paper.
= - Tic-tac-toe\n- Hangman\n- Dots and boxes
What are three ways to lower a heating bill?
= - Seal the gaps around windows and doors.\n- Turn the heat down at night.\n- Close the curtains after dark.
Name three things that every first-aid kit should contain.
= - Bandages\n- Disinfectant\n- A pair of scissors
List three ways to calm down before a speech.
= - Breathe slowly and deeply.\n- Say your first sentence aloud.\n- Look for a friendly face in the room.
I have leftover rice. Give me three ideas for it.
= - Fry it with egg and peas.\n- Stir it into a soup.\n- Simmer it in milk with cinnamon.
Suggest three rules for sharing a kitchen.
= - Wash your dishes the same day.\n- Label your food.\n- Take turns with the trash.
Name three places to look for a lost key.
= - In the pockets of your coat\n- Under the sofa cushions\n- In the lock itself
Give three reasons to learn a second language.
= - It makes travel easier.\n- It opens up new jobs.\n- It keeps the mind active.
What could our class do with an old bathtub? Suggest three uses.
= - Plant herbs in it.\n- Turn it into a small pond.\n- Cut it open to make a bench.
"""

HOW_TO = r"""
How do I sew on a button?
= 1. Thread a needle and tie a knot in the end.\n2. Sew through the holes of the button and the cloth five or six
  times.\n3. Wind the thread around the stem, knot it underneath and cut it off.
Explain step by step how to poach an egg.
= 1. Bring a pan of water to a gentle simmer.\n2. Crack the egg into a cup and slide it into the water.\n3. Cook it for
  three to four minutes.\n4. Lift it out with a slotted spoon.
What is the best way to repot a houseplant?
= 1. Choose a pot slightly larger than the old one.\n2. Loosen the roots and shake off the old soil.\n3. Set the plant
  in fresh soil at the same depth as before.\n4. Water it well.
Give me directions for changing a bicycle's inner tube.
= 1. Take off the wheel and lever the tire off the rim.\n2. Pull out the old tube and check the tire for glass.\n3. Put
  in the new tube with a little air in it.\n4. Press the tire back on and pump it up.
How can I get candle wax out of a tablecloth?
= 1. Let the wax harden and scrape it off.\n2. Lay paper towels above and below the stain.\n3. Press with a warm iron
  so that the paper soaks up the rest.
Tell me how to brew loose-leaf black tea.
= 1. Bring fresh water to a boil.\n2. Put one teaspoon of tea per cup into a warm pot.\n3. Pour on the water and wait
  four minutes.\n4. Strain the tea into cups.
How do you wrap a book as a present?
= 1. Cut the paper so that it reaches around the book with an inch to spare.\n2. Fold it over and tape it.\n3. Fold the
  ends into triangles and tape them down.
Describe the steps for planting a tulip bulb.
= 1. Dig a hole three times as deep as the bulb is tall.\n2. Set the bulb in it with the point facing up.\n3. Fill the
  hole and press the soil down gently.
How should I prepare for a phone interview?
= 1. Read about the company.\n2. Note three things you want to say and two questions.\n3. Find a quiet room and charge
  your phone.\n4. Keep your resume in front of you.
Teach me how to fold a simple paper hat.
= 1. Fold a sheet of newspaper in half from top to bottom.\n2. Fold the upper corners to the middle.\n3. Fold up one
  strip at the bottom on each side.\n4. Open the hat from below.
How do I clean a cast-iron pan?
= 1. Wipe it out while it is still warm.\n2. Scrub off what sticks with hot water and a brush.\n3. Dry it at once.\n4.
  Rub it with a thin film of oil.
What steps should I follow to write a letter of complaint?
= 1. Say what you bought and when.\n2. Describe the fault in a few plain words.\n3. State what you want, such as a
  refund.\n4. Give a date by which you expect an answer.
How can I make a simple vinaigrette?
= 1. Put one part vinegar and three parts oil into a jar.\n2. Add salt, pepper and a little mustard.\n3. Close the lid
  and shake well.
Explain how to measure a window for curtains.
= 1. Measure the length of the curtain rod.\n2. Double it, so that the curtains fall in folds.\n3. Measure from the rod
  down to where the cloth should end.\n4. Add a few inches for the hem.
How do I treat a small cut?
= 1. Wash your hands.\n2. Rinse the cut under clean water.\n3. Press a clean cloth on it until the bleeding stops.\n4.
  Cover it with a bandage.
How do you find the North Star?
= 1. Look for the Big Dipper.\n2. Find the two stars at the outer edge of its bowl.\n3. Follow the line through them
  upward until you come to the next bright star.
Give instructions for ironing a shirt.
= 1. Set the iron for the fabric.\n2. Start with the collar and the cuffs.\n3. Go on with the sleeves.\n4. Finish with
  the front and the back.
How can I memorize a poem?
= 1. Read it aloud several times.\n2. Learn the first two lines by heart.\n3. Add two more lines, always starting again
  from the top.\n4. Recite it the next morning.
How do I make a bookmark out of a leaf?
= 1. Press the leaf between heavy books for a week.\n2. Glue it to a strip of card.\n3. Cover it with clear tape and
  trim the edges.
What do I do when a circuit breaker trips at home?
= 1. Unplug the device that caused it.\n2. Go to the breaker box and find the switch that has tripped.\n3. Switch it
  fully off and then on.\n4. Call an electrician if it trips again.
How do you cook rice on the stove?
= 1. Rinse one cup of rice.\n2. Bring it to a boil with two cups of water and some salt.\n3. Cover the pot and simmer
  on low heat for fifteen minutes.\n4. Let it rest for five minutes off the heat.
Explain how to back up photos from a phone.
= 1. Connect the phone to your computer with a cable.\n2. Open the folder that holds the pictures.\n3. Copy them to an
  external drive.\n4. Check that a few of them open.
"""

DESCRIPTION = """
Describe a farmers' market early in the morning.
= The stalls are still half in shadow, and the first crates of lettuce are wet with dew. Someone is stacking loaves
  while a dog waits for crumbs. By the coffee cart, the sellers warm their hands.
Write two or three sentences about an old lighthouse.
= The paint has long since peeled from the seaward side. Inside, a spiral staircase smells of salt and oil. At the top
  the great lamp still turns, though no one lives there to see it.
Paint a picture in words of the first snow of the year.
= It began after midnight, without a sound. In the morning the cars were soft white humps, and every twig carried its
  own thin line of snow. Even the crows were quiet.
Describe your ideal reading corner.
= It has a deep armchair beside a window and a lamp that can be bent over the page. There is a small table for tea, and
  nobody needs to walk past.
Begin a story about a suitcase that nobody claims.
= The green suitcase went around the belt for the ninth time. By now the hall was empty except for Ida, who had come to
  sweep. When she lifted it, something inside it began to tick.
What might a train station at midnight look like? Describe it.
= A single cafe is open, and its owner is putting chairs on tables. Two students sleep against their backpacks. The
  board shows one last train, forty minutes late.
Write a short description of a friendly old dog.
= Bruno is gray around the nose and deaf in one ear. He greets every visitor with a slow wag and then leans on their
  legs until he is scratched.
Describe the smell and sounds of a bakery.
= The air smells of warm butter and a little of smoke. Trays clatter, the oven door creaks, and fresh crusts crackle
  softly as they cool.
Write the opening of a mystery set in a library.
= Every night at ten, Mr. Sloan counted the books on the locked shelf. There were always forty-one. On the night of the
  storm, there were forty-two.
Tell a tiny story about a boy and a kite.
= Tomas saved for a month to buy the red kite. On its first flight the string snapped, and it sailed away over the
  hills. A week later a postcard came from the next valley: "Thank you for the kite."
Describe a thunderstorm over a lake.
= The far shore disappears first, behind a gray curtain. Then the wind arrives, and the smooth water turns rough and
  dark. Each flash of lightning shows the boats tugging at their ropes.
Write a few sentences about a neighborhood garden.
= Once it was a parking lot, and some of the white lines still show. Now there are beans on strings, a row of
  sunflowers and a bench made of crates. On Sundays everybody brings something to eat.
Imagine a shop that sells only clocks, and describe it.
= No two clocks agree, so the shop is never silent. Tall ones stand along the wall like guests waiting to dance. The
  owner, when asked the time, looks out at the church tower.
Describe a city street after rain.
= The pavement shines, and every puddle holds an upside-down traffic light. Drops still fall from the awnings. People
  come out of doorways and shake their umbrellas.
Write a short scene in which two strangers share a table.
= "Is this seat taken?" he asked. She moved her newspaper without looking up. Ten minutes later they were finishing the
  crossword together, and his coffee had gone cold.
Give a lively description of a school cafeteria.
= Two hundred voices bounce off the tiles. Trays slide, chairs scrape, and a lone orange rolls down the aisle while
  five children chase it. Behind the counter, the cook keeps count with her ladle.
Describe a mountain hut for a travel blog.
= The hut clings to the rock at two thousand meters, three hours above the last road. There is no shower, but there is
  barley soup, a stove that never goes out, and a view over four valleys.
Write a brief portrait of a violin maker.
= Greta taps each piece of spruce and listens before she cuts. Her workshop is full of half-finished shapes hanging
  from a wire. She has made ninety violins and remembers the name of every buyer.
Start a story with a letter that arrives ten years late.
= The envelope was yellow, and the stamp was one they no longer sold. It was from her brother, written on the day
  before he sailed. "Don't sell the house," it began, "until you have looked under the stairs."
Describe an autumn walk in the woods.
= The path is hidden under leaves, and each step rustles. It smells of mushrooms and wet bark. Now and then an acorn
  drops, and a jay complains about it.
"""


def records(rng: random.Random) -> list[Record]:
    """Return the records whose answers are written from scratch."""
    whole = {
        "explanation": EXPLAIN,
        "how-to": HOW_TO,
        "description": DESCRIPTION,
        "message": MESSAGE,
        "suggestions": SUGGESTION,
    }
    return [
        *dress("definition", pairs(DEFINITION), DEFINITION_ASK, rng),
        *dress("comparison", pairs(COMPARISON), COMPARISON_ASK, rng),
        *(Record(kind, request, "", answer) for kind, text in whole.items() for request, answer in pairs(text)),
    ]
