"""Sentences put into another voice, tense, register or form: the meaning stays, the grammar moves."""

from __future__ import annotations

import random

from .record import Record, dress, pairs

PASSIVE = """
The gardener trimmed the hedges before noon.
= The hedges were trimmed by the gardener before noon.
A retired pilot restored this old biplane.
= This old biplane was restored by a retired pilot.
Two volunteers will paint the fence on Saturday.
= The fence will be painted by two volunteers on Saturday.
The committee has postponed the vote until May.
= The vote has been postponed until May by the committee.
Heavy snow blocked the mountain pass for a week.
= The mountain pass was blocked by heavy snow for a week.
My aunt bakes the bread for the whole village.
= The bread for the whole village is baked by my aunt.
The referee stopped the match after ten minutes.
= The match was stopped by the referee after ten minutes.
Someone had stolen the bicycle from the shed.
= The bicycle had been stolen from the shed.
Engineers are testing the new bridge this week.
= The new bridge is being tested by engineers this week.
The youngest student wrote the winning poem.
= The winning poem was written by the youngest student.
A lightning strike split the oak in two.
= The oak was split in two by a lightning strike.
The museum must return the painting next year.
= The painting must be returned by the museum next year.
Bees pollinate most of the apple trees here.
= Most of the apple trees here are pollinated by bees.
The night nurse checks every patient at four.
= Every patient is checked by the night nurse at four.
An unknown sculptor carved these wooden angels.
= These wooden angels were carved by an unknown sculptor.
The tide swept our sandcastle away.
= Our sandcastle was swept away by the tide.
The editor has corrected all three chapters.
= All three chapters have been corrected by the editor.
A stray dog was chasing the mail carrier down the lane.
= The mail carrier was being chased down the lane by a stray dog.
The company will ship your order tomorrow.
= Your order will be shipped by the company tomorrow.
Nobody heard the alarm during the storm.
= The alarm was not heard by anybody during the storm.
The twins fed the goats at sunrise.
= The goats were fed by the twins at sunrise.
The orchestra played the waltz twice.
= The waltz was played twice by the orchestra.
Our neighbor grows these tomatoes without pesticides.
= These tomatoes are grown without pesticides by our neighbor.
The judge may reject the appeal.
= The appeal may be rejected by the judge.
The fire destroyed half of the archive in 1911.
= Half of the archive was destroyed by the fire in 1911.
A thick layer of ivy covers the chapel walls.
= The chapel walls are covered by a thick layer of ivy.
The plumber has already fixed the leak under the sink.
= The leak under the sink has already been fixed by the plumber.
The mayor opened the new library on Monday.
= The new library was opened by the mayor on Monday.
Farmers in the valley harvest the olives in November.
= The olives are harvested in November by farmers in the valley.
The goalkeeper caught the ball just in time.
= The ball was caught by the goalkeeper just in time.
My grandfather built this table from a fallen walnut tree.
= This table was built by my grandfather from a fallen walnut tree.
The guide will show you the caves after lunch.
= You will be shown the caves by the guide after lunch.
A Danish crew found the wreck near the island.
= The wreck was found by a Danish crew near the island.
The wind had blown all the leaves into the pond.
= All the leaves had been blown into the pond by the wind.
The choir sang the final verse in Welsh.
= The final verse was sung in Welsh by the choir.
Customs officers are inspecting every truck at the border.
= Every truck at the border is being inspected by customs officers.
You should water the ferns twice a week.
= The ferns should be watered twice a week.
The clerk mailed the documents to the wrong address.
= The documents were mailed to the wrong address by the clerk.
A team of nurses organized the charity run.
= The charity run was organized by a team of nurses.
The cat broke the blue vase.
= The blue vase was broken by the cat.
Fog delayed nearly every flight this morning.
= Nearly every flight was delayed by fog this morning.
The apprentice has not sharpened the chisels.
= The chisels have not been sharpened by the apprentice.
A local artist drew the map for our hiking club.
= The map for our hiking club was drawn by a local artist.
The audience applauded the young violinist for five minutes.
= The young violinist was applauded by the audience for five minutes.
"""

PASSIVE_ASK = (
    "Rewrite the sentence in the passive voice.",
    "Change this to the passive voice: {0}",
    "How would you put this in the passive? {0}",
    "Turn this active sentence into a passive one: {0}",
    "Make the object of this sentence its subject by using the passive voice.",
    "Use the passive voice to say the same thing: {0}",
    "The sentence below is active. Write it in the passive.",
    "Recast this sentence in the passive voice.",
    "Please convert the following sentence to the passive voice.",
    "What does this sentence look like in the passive voice? {0}",
)

PAST = """
The bakery opens at six and sells out by nine.
= The bakery opened at six and sold out by nine.
She keeps her letters in a tin box under the bed.
= She kept her letters in a tin box under the bed.
We swim in the lake every morning before breakfast.
= We swam in the lake every morning before breakfast.
The old clock strikes twelve, and nobody moves.
= The old clock struck twelve, and nobody moved.
My brother teaches chemistry at a small college.
= My brother taught chemistry at a small college.
The river freezes in January.
= The river froze in January.
They know the answer but say nothing.
= They knew the answer but said nothing.
Grandma tells the same story every winter.
= Grandma told the same story every winter.
The children run to the gate when the ice cream truck comes.
= The children ran to the gate when the ice cream truck came.
He wears a green scarf even in summer.
= He wore a green scarf even in summer.
The train leaves late and arrives early.
= The train left late and arrived early.
I understand the rules, but I forget the exceptions.
= I understood the rules, but I forgot the exceptions.
The coach chooses a new captain each season.
= The coach chose a new captain each season.
A fox sleeps behind the greenhouse.
= A fox slept behind the greenhouse.
The mechanic finds the fault and gives us a fair price.
= The mechanic found the fault and gave us a fair price.
You speak too quietly for the people at the back.
= You spoke too quietly for the people at the back.
The kite rises above the roofs and disappears.
= The kite rose above the roofs and disappeared.
She buys fresh mint at the market and grows her own basil.
= She bought fresh mint at the market and grew her own basil.
The committee meets on Thursdays and rarely agrees.
= The committee met on Thursdays and rarely agreed.
Our dog hides his bones and digs them up again.
= Our dog hid his bones and dug them up again.
The bus does not stop at the hospital.
= The bus did not stop at the hospital.
I carry the boxes while Tom holds the door.
= I carried the boxes while Tom held the door.
The actors forget their lines and begin to laugh.
= The actors forgot their lines and began to laugh.
Nina rides her bike to work and saves the fare.
= Nina rode her bike to work and saved the fare.
The lake is so clear that we see the bottom.
= The lake was so clear that we saw the bottom.
They fight over the window seat on every trip.
= They fought over the window seat on every trip.
He throws the stick, and the puppy brings back a shoe.
= He threw the stick, and the puppy brought back a shoe.
The shop has no coffee, so we drink tea.
= The shop had no coffee, so we drank tea.
The tenants pay the rent on the first of the month.
= The tenants paid the rent on the first of the month.
My knees hurt whenever I stand for too long.
= My knees hurt whenever I stood for too long.
The baby cries until someone sings to her.
= The baby cried until someone sang to her.
She hears a knock and thinks of the wind.
= She heard a knock and thought of the wind.
The tailor cuts the cloth and sews the sleeves by hand.
= The tailor cut the cloth and sewed the sleeves by hand.
We catch three trout and let the smallest go.
= We caught three trout and let the smallest go.
The guests sit on the porch and eat cherries.
= The guests sat on the porch and ate cherries.
A cold wind shakes the shutters and wakes the house.
= A cold wind shook the shutters and woke the house.
"""

PAST_ASK = (
    "Put this sentence into the past tense.",
    "Rewrite this in the simple past: {0}",
    "Change the verbs to the past tense: {0}",
    "How does this read in the past tense? {0}",
    "Tell it as something that already happened: {0}",
    "The sentence below is in the present. Move it to the past.",
    "Past tense, please.",
    "Rewrite the sentence so that it takes place in the past.",
    "Convert from present tense to past tense: {0}",
)

FUTURE = """
The library closes early on Friday.
= The library will close early on Friday.
I called the landlord about the heating.
= I will call the landlord about the heating.
The swallows return in April.
= The swallows will return in April.
We planted garlic along the south wall.
= We will plant garlic along the south wall.
Dr. Osei gives a talk on volcanoes.
= Dr. Osei will give a talk on volcanoes.
The ferry does not run on Sundays.
= The ferry will not run on Sundays.
They met us outside the theater.
= They will meet us outside the theater.
My sister is the head of the new clinic.
= My sister will be the head of the new clinic.
He took the night train to Warsaw.
= He will take the night train to Warsaw.
The soup is ready in twenty minutes.
= The soup will be ready in twenty minutes.
The school bought thirty new microscopes.
= The school will buy thirty new microscopes.
You find the spare key under the flowerpot.
= You will find the spare key under the flowerpot.
The workers repaired the tunnel over the summer.
= The workers will repair the tunnel over the summer.
She brings her own lunch to the meeting.
= She will bring her own lunch to the meeting.
The team flew to Lisbon for the final.
= The team will fly to Lisbon for the final.
Nobody believed such a strange excuse.
= Nobody will believe such a strange excuse.
The moon passes in front of the sun at noon.
= The moon will pass in front of the sun at noon.
I have enough money for the deposit.
= I will have enough money for the deposit.
The price of tickets went up in the spring.
= The price of tickets will go up in the spring.
Our cousins stayed with us for a week.
= Our cousins will stay with us for a week.
The new manager makes several changes.
= The new manager will make several changes.
It rained along the coast all weekend.
= It will rain along the coast all weekend.
The bank sends a letter to every customer.
= The bank will send a letter to every customer.
The baker taught the class how to braid dough.
= The baker will teach the class how to braid dough.
"""

FUTURE_ASK = (
    'Rewrite this sentence in the future tense with "will": {0}',
    'Put the sentence into the future tense; use "will" as the helping verb.',
    'Change this to the future with "will": {0}',
    "Make this a sentence about the future: {0}",
    'How would you say this with "will"? {0}',
    "Shift the sentence to the future tense.",
    "This has not happened yet, so rewrite it in the future tense: {0}",
)

FORMAL = """
Sorry, can't make it tomorrow, something came up.
= I apologize, but I am unable to attend tomorrow, as an unexpected matter has arisen.
Send me the file when you get a sec.
= Please send me the file at your earliest convenience.
Your app keeps crashing and it's driving me nuts.
= I am writing to report that your application crashes repeatedly, which is causing me considerable frustration.
Hey, any news about the job?
= I would be grateful for an update on the status of my application.
We messed up your order, our bad.
= We apologize for the error in your order.
What's the deal with this extra fee?
= Could you please explain the reason for this additional fee?
Thanks a bunch for helping out last week.
= Thank you very much for your assistance last week.
You guys need to fix the elevator ASAP.
= We kindly ask that you repair the elevator as soon as possible.
I'm stuck in traffic, start without me.
= I have been delayed by traffic, so please begin without me.
The boss loved your idea.
= The manager was very impressed by your proposal.
No way we can afford that right now.
= Unfortunately, that expense exceeds our current budget.
Gimme a call if you've got questions.
= Please telephone me if you have any questions.
This report is a total mess.
= This report requires substantial revision.
Let's chat about it next week.
= I suggest that we discuss the matter next week.
Can I get my money back?
= I would like to request a refund.
Kids get in free.
= Admission is free of charge for children.
I didn't get a thing you said in that email.
= I am afraid I did not understand your email.
Don't park here or we'll tow your car.
= Vehicles parked here without permission will be towed at the owner's expense.
She quit because the pay was lousy.
= She resigned because the salary was inadequate.
Dinner's on us tonight.
= We would be pleased to pay for dinner this evening.
Heads up, the office is shut on Monday.
= Please be advised that the office will be closed on Monday.
Wanna come to our opening party?
= We cordially invite you to attend our opening reception.
He's super good with numbers.
= He has an exceptional aptitude for mathematics.
Oops, I forgot to attach the photos.
= I apologize for neglecting to attach the photographs.
It's way too loud in here to work.
= The noise level makes it difficult to work in this area.
Just checking you got my note.
= I am writing to confirm that you received my message.
We're swamped, so it'll take a while.
= Owing to a high volume of requests, there will be a delay.
The guy at the desk was really rude to me.
= The staff member at the desk treated me discourteously.
Tell me what you think of the plan.
= I would appreciate your opinion of the plan.
Stuff costs a lot more these days.
= The price of goods has risen considerably in recent years.
Looks like the printer's dead again.
= The printer appears to be out of order once more.
I'd kill for a spot on your team.
= I would be honored to join your team.
The meeting got pushed back to Thursday.
= The meeting has been postponed until Thursday.
Could you look this over real quick?
= Would you be so kind as to review this briefly?
Nobody told us the rules had changed.
= We were not informed of the change in the rules.
"""

FORMAL_ASK = (
    "Rewrite this in a formal tone: {0}",
    "Make this sound professional.",
    "How would I say this in a business letter? {0}",
    "Put this message into formal English: {0}",
    "Rewrite the text below in formal language.",
    "This is too casual. Please make it formal: {0}",
    "Turn this chatty line into polite, formal English: {0}",
    "I need a more formal version of this sentence.",
    "Rephrase the message below for a formal letter.",
)

QUESTION = """
The museum is open on Mondays.
= Is the museum open on Mondays?
Your sister plays the cello.
= Does your sister play the cello?
They have finished the roof.
= Have they finished the roof?
The soup contains peanuts.
= Does the soup contain peanuts?
He can repair the old radio.
= Can he repair the old radio?
The neighbors moved to Ohio.
= Did the neighbors move to Ohio?
You were at the concert last night.
= Were you at the concert last night?
The train will stop in Dover.
= Will the train stop in Dover?
Marta has a driver's license.
= Does Marta have a driver's license?
The twins are coming with us.
= Are the twins coming with us?
The recipe needs two eggs.
= Does the recipe need two eggs?
We should bring our own towels.
= Should we bring our own towels?
The storm knocked down the antenna.
= Did the storm knock down the antenna?
There is a pharmacy near the station.
= Is there a pharmacy near the station?
It was raining when you left.
= Was it raining when you left?
Penguins can swim faster than people.
= Can penguins swim faster than people?
The manager has approved the budget.
= Has the manager approved the budget?
Visitors must sign the guest book.
= Must visitors sign the guest book?
Leo forgot his umbrella again.
= Did Leo forget his umbrella again?
The shop sells secondhand cameras.
= Does the shop sell secondhand cameras?
The cake would taste better with lemon.
= Would the cake taste better with lemon?
All the seats were taken.
= Were all the seats taken?
She wrote the letter herself.
= Did she write the letter herself?
The bridge could carry a heavy truck.
= Could the bridge carry a heavy truck?
The plants had been watered.
= Had the plants been watered?
Your parents know about the party.
= Do your parents know about the party?
The cat is hiding in the laundry basket.
= Is the cat hiding in the laundry basket?
The bus left without them.
= Did the bus leave without them?
Owls hunt at night.
= Do owls hunt at night?
The results have been published.
= Have the results been published?
Ben speaks Portuguese at home.
= Does Ben speak Portuguese at home?
The tickets cost more at the door.
= Do the tickets cost more at the door?
"""

QUESTION_ASK = (
    "Turn this statement into a yes-or-no question: {0}",
    "Make a question out of this sentence.",
    "Rewrite the statement as a question: {0}",
    "Ask about this instead of stating it: {0}",
    "Change this into a question.",
    'What question would this statement answer with "yes"? {0}',
    "Reword the sentence below as a yes-or-no question.",
    "How do you ask this as a question? {0}",
)

REPORTED = """
Anna said, "I am tired."
= Anna said that she was tired.
The driver said, "The road is closed."
= The driver said that the road was closed.
Paul asked, "Where is the exit?"
= Paul asked where the exit was.
The teacher told us, "Open your books."
= The teacher told us to open our books.
Mia said, "I have lost my passport."
= Mia said that she had lost her passport.
"We will win," the captain promised.
= The captain promised that they would win.
The doctor asked me, "Do you smoke?"
= The doctor asked me whether I smoked.
"I can't swim," Jonas admitted.
= Jonas admitted that he could not swim.
The guard told the boys, "Don't touch the paintings."
= The guard told the boys not to touch the paintings.
Ruth said, "My brother lives in Kenya."
= Ruth said that her brother lived in Kenya.
"The soup is too salty," the customer complained.
= The customer complained that the soup was too salty.
Omar asked, "Has the mail come?"
= Omar asked whether the mail had come.
The pilot announced, "We are landing in Denver."
= The pilot announced that they were landing in Denver.
Lucy said, "I may be late."
= Lucy said that she might be late.
"Who broke the window?" Mr. Hale asked.
= Mr. Hale asked who had broken the window.
The coach told Sam, "Stretch before you run."
= The coach told Sam to stretch before he ran.
The clerk said, "The last ferry has left."
= The clerk said that the last ferry had left.
"I don't like olives," Petra said.
= Petra said that she did not like olives.
My uncle asked me, "What are you reading?"
= My uncle asked me what I was reading.
The sign maker said, "The paint is still wet."
= The sign maker said that the paint was still wet.
"I will call the plumber," Hugo told his wife.
= Hugo told his wife that he would call the plumber.
The librarian asked the girl, "Can you spell your name?"
= The librarian asked the girl whether she could spell her name.
"We need more chairs," the organizers said.
= The organizers said that they needed more chairs.
Dina told her son, "Wash your hands."
= Dina told her son to wash his hands.
The farmer said, "The hens aren't laying."
= The farmer said that the hens were not laying.
"""

REPORTED_ASK = (
    "Rewrite this in reported speech: {0}",
    "Change the direct speech to reported speech.",
    "Report what was said, without quotation marks: {0}",
    "Turn this quotation into indirect speech.",
    "How would you write this as indirect speech? {0}",
    "Put the sentence below into indirect speech.",
    "Take away the quotation marks and report the words instead: {0}",
)


def records(rng: random.Random) -> list[Record]:
    """Return the records about voice, tense, register, questions and reported speech."""
    return [
        *dress("passive voice", pairs(PASSIVE), PASSIVE_ASK, rng),
        *dress("past tense", pairs(PAST), PAST_ASK, rng),
        *dress("future tense", pairs(FUTURE), FUTURE_ASK, rng),
        *dress("formal register", pairs(FORMAL), FORMAL_ASK, rng),
        *dress("statement to question", pairs(QUESTION), QUESTION_ASK, rng),
        *dress("reported speech", pairs(REPORTED), REPORTED_ASK, rng),
    ]
