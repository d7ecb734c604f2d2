"""Sentences corrected: spelling and grammar put right, wordy ones cut, stiff ones made plain, short ones joined."""

from __future__ import annotations

import random

from .record import Record, dress, pairs

SPELLING = """
The hotel was beautifull, but the acommodation cost too much.
= The hotel was beautiful, but the accommodation cost too much.
I recieved your package on Wensday.
= I received your package on Wednesday.
My neigbor has a seperate entrance.
= My neighbor has a separate entrance.
It is definately going to rain tommorow.
= It is definitely going to rain tomorrow.
The goverment anounced a new tax.
= The government announced a new tax.
Her handwritting is hard to reed.
= Her handwriting is hard to read.
We had brekfast on the balcany.
= We had breakfast on the balcony.
The libary has a quite corner for studying.
= The library has a quiet corner for studying.
He was embarassed by his misstake.
= He was embarrassed by his mistake.
Please adress the envelop to my office.
= Please address the envelope to my office.
The calender on the wall is from last yeer.
= The calendar on the wall is from last year.
I have allready tryed that.
= I have already tried that.
The restarant serves excelent fish.
= The restaurant serves excellent fish.
There was a strange noize in the basment.
= There was a strange noise in the basement.
Our gide spoke four langauges.
= Our guide spoke four languages.
She is an independant and couragous journalist.
= She is an independent and courageous journalist.
The experament was a sucess.
= The experiment was a success.
He finaly found his lost glases.
= He finally found his lost glasses.
The rythm of the song is unusal.
= The rhythm of the song is unusual.
Febuary is the shortest munth.
= February is the shortest month.
The nife is in the top draw of the kitchin.
= The knife is in the top drawer of the kitchen.
They were greatful for the oportunity.
= They were grateful for the opportunity.
The juge asked the witnes to sit down.
= The judge asked the witness to sit down.
My freind is alergic to strawberrys.
= My friend is allergic to strawberries.
The scedule changes every weak.
= The schedule changes every week.
A foriegn visitor asked for derections.
= A foreign visitor asked for directions.
The sizors are in the sowing box.
= The scissors are in the sewing box.
Unfortunatly, the concert was canceld.
= Unfortunately, the concert was canceled.
The captin steared the ship past the rocks.
= The captain steered the ship past the rocks.
You can by stamps at the post ofice.
= You can buy stamps at the post office.
The temprature droped below zero.
= The temperature dropped below zero.
It is not neccessary to appologize.
= It is not necessary to apologize.
The sientist explaned her theory.
= The scientist explained her theory.
We climed the iland's highest hill.
= We climbed the island's highest hill.
The garantee lasts for too years.
= The guarantee lasts for two years.
His oppinion surprized everyone.
= His opinion surprised everyone.
The docter gave me a perscription.
= The doctor gave me a prescription.
The vegtables are growing realy well.
= The vegetables are growing really well.
I cannot beleive how expensiv it is.
= I cannot believe how expensive it is.
The athleet broke his own reccord.
= The athlete broke his own record.
"""

SPELLING_ASK = (
    "Correct the spelling in this sentence.",
    "Fix the spelling mistakes: {0}",
    "Some words here are misspelled or mixed up. Write the sentence correctly: {0}",
    "Please proofread this line for spelling.",
    "Spell-check this for me.",
    "Write this again without the spelling errors: {0}",
    "Check the spelling of the sentence below and give the corrected version.",
    "There are spelling errors in this sentence. What should it say? {0}",
    "Clean up the spelling in the text below.",
)

GRAMMAR = """
She don't like spicy food.
= She doesn't like spicy food.
Me and Carla went to the beach.
= Carla and I went to the beach.
There is three cups on the table.
= There are three cups on the table.
He should of called first.
= He should have called first.
the dentist is on elm street
= The dentist is on Elm Street.
Each of the players have a locker.
= Each of the players has a locker.
I bought a umbrella and an raincoat.
= I bought an umbrella and a raincoat.
Its a shame the dog hurt it's paw.
= It's a shame the dog hurt its paw.
We have less chairs than guests.
= We have fewer chairs than guests.
Your going to love they're garden.
= You're going to love their garden.
Yesterday I go to the market and buyed plums.
= Yesterday I went to the market and bought plums.
Lets go home Martha.
= Let's go home, Martha.
This is the more expensive of the three lamps.
= This is the most expensive of the three lamps.
He runs more faster than his brother.
= He runs faster than his brother.
Whos coat is hanging in the hall.
= Whose coat is hanging in the hall?
I have saw that film twice.
= I have seen that film twice.
The news are good today.
= The news is good today.
She sings beautiful.
= She sings beautifully.
between you and I, the cake was dry.
= Between you and me, the cake was dry.
They was waiting since an hour.
= They had been waiting for an hour.
If I was you, I would of left.
= If I were you, I would have left.
where did you put the stapler
= Where did you put the stapler?
The childrens toys' were everywhere.
= The children's toys were everywhere.
Neither of the answers are correct.
= Neither of the answers is correct.
I am agree with you.
= I agree with you.
He gave me some good advices.
= He gave me some good advice.
my cousin who lives in spain is a nurse
= My cousin, who lives in Spain, is a nurse.
We discussed about the plan at lunch.
= We discussed the plan at lunch.
After the rain stopped we hung out the laundry
= After the rain stopped, we hung out the laundry.
The bus it was late again.
= The bus was late again.
I didn't see nobody at the pool.
= I didn't see anybody at the pool.
Can you learn me how to knit?
= Can you teach me how to knit?
She has lived here since ten years.
= She has lived here for ten years.
The team are happy with it's new coach.
= The team is happy with its new coach.
What a beautiful garden
= What a beautiful garden!
"""

GRAMMAR_ASK = (
    "Correct the grammar and punctuation: {0}",
    "Fix any mistakes in this sentence.",
    "What is the correct way to write this? {0}",
    "Edit the sentence so that it follows standard grammar.",
    "Find the mistake and write the sentence correctly: {0}",
    "My teacher marked this as wrong. How should it read? {0}",
    "Proofread this line.",
    "Give me the corrected version of this sentence.",
    "Something is off in this sentence; please fix it: {0}",
)

SHORTEN = """
Due to the fact that the road was covered in ice, the school made the decision to close for the day.
= The school closed for the day because the road was icy.
At this point in time we are not in a position to offer refunds.
= We cannot offer refunds now.
The reason why I was late is because of the fact that my alarm did not go off.
= I was late because my alarm did not go off.
There are many people who believe that the old theater should be saved.
= Many people believe the old theater should be saved.
In the event that you happen to lose your card, please get in touch with us by telephone.
= If you lose your card, please call us.
The box was rectangular in shape and brown in color.
= The box was rectangular and brown.
It is my personal opinion that the second version of the song is better.
= I think the second version of the song is better.
She has the ability to speak five different languages.
= She can speak five languages.
We came to the conclusion that the engine was in need of replacement.
= We concluded that the engine needed replacing.
He is a man who rarely ever says anything that is unkind.
= He rarely says anything unkind.
The meeting will take place at 9 a.m. in the morning on Tuesday of next week.
= The meeting is at 9 a.m. next Tuesday.
In spite of the fact that it was raining, we still went ahead with the picnic.
= We had the picnic despite the rain.
The new rules that were recently introduced have had the effect of making parking harder.
= The new rules have made parking harder.
Each and every one of the guests received a small gift that was free of charge.
= Every guest received a small free gift.
I am writing this email to let you know that the shipment has arrived here.
= The shipment has arrived.
The garden, which is located behind the house, is completely full of roses.
= The garden behind the house is full of roses.
With regard to your question about prices, they will be going up in June.
= Prices will go up in June.
What we need to do first before anything else is to find a map.
= First we need to find a map.
The film was so long in length that several people in the audience fell asleep.
= The film was so long that several viewers fell asleep.
There was a total of twelve students in the class who had not yet paid.
= Twelve students in the class had not yet paid.
He made the journey by means of a bicycle in order to save money.
= He cycled to save money.
The cat gave every appearance of being hungry.
= The cat seemed hungry.
Until such time as the paint has become dry, do not lean on the wall.
= Do not lean on the wall until the paint is dry.
My grandmother is a person who never wastes any food of any kind.
= My grandmother never wastes food.
A large number of the houses on the street are without any electricity at present.
= Many houses on the street have no electricity.
It would be greatly appreciated if you could give some consideration to lowering the volume of the music.
= Please consider turning down the music.
The two brothers both had exactly the same identical haircut.
= The two brothers had the same haircut.
As far as the weather is concerned, it is expected to be cold in the days ahead.
= Cold weather is expected.
The purpose of this sign is to warn drivers of the possible presence of deer.
= This sign warns drivers of deer.
She was absolutely and completely certain that she had locked the door.
= She was certain that she had locked the door.
"""

SHORTEN_ASK = (
    "Shorten this sentence without losing its meaning.",
    "Say this in fewer words: {0}",
    "Cut the clutter: {0}",
    "This is wordy. Can you tighten it? {0}",
    "Make the sentence below more concise.",
    "Trim this down to what matters.",
    "Give a shorter version of this sentence: {0}",
    "Remove the unnecessary words.",
)

COMBINE = """
The sun came out. The snow began to melt.
= When the sun came out, the snow began to melt.
Priya loves opera. Her husband prefers jazz.
= Priya loves opera, but her husband prefers jazz.
The shop was closed. We went home.
= The shop was closed, so we went home.
I met a woman. She makes violins.
= I met a woman who makes violins.
He was hungry. He did not touch the cake.
= Although he was hungry, he did not touch the cake.
The lighthouse was built in 1860. It still guides ships today.
= The lighthouse, which was built in 1860, still guides ships today.
We packed sandwiches. We filled two bottles with water.
= We packed sandwiches and filled two bottles with water.
The path was steep. We reached the top before dark.
= The path was steep, but we reached the top before dark.
You can take the bus. You can rent a bicycle.
= You can take the bus or rent a bicycle.
Emil missed the lecture. He had the flu.
= Emil missed the lecture because he had the flu.
The phone rang. I was in the shower.
= The phone rang while I was in the shower.
My uncle lives in Oslo. He is a retired sailor.
= My uncle, a retired sailor, lives in Oslo.
The soup was cold. The bread was stale.
= The soup was cold, and the bread was stale.
Water the seedlings every day. They will dry out otherwise.
= Water the seedlings every day, or they will dry out.
The actor bowed. Then he left the stage.
= The actor bowed and then left the stage.
She finished her homework. She went for a swim.
= After she finished her homework, she went for a swim.
This is the house. The composer was born here.
= This is the house where the composer was born.
The coat is warm. It weighs almost nothing.
= The coat is warm, yet it weighs almost nothing.
The bakery uses stone ovens. They are over a century old.
= The bakery uses stone ovens that are over a century old.
It may rain tomorrow. The match will be moved indoors in that case.
= If it rains tomorrow, the match will be moved indoors.
The baby was asleep. We spoke in whispers.
= We spoke in whispers because the baby was asleep.
Dario studied the map. He could not find the village.
= Dario studied the map but could not find the village.
The boy's bike was stolen. He had to walk to school.
= The boy whose bike was stolen had to walk to school.
The rain stopped. The players returned to the field.
= As soon as the rain stopped, the players returned to the field.
Wash the rice. It should be washed before you cook it.
= Wash the rice before you cook it.
Neither route is quick. Both routes are beautiful.
= Neither route is quick, but both are beautiful.
"""

COMBINE_ASK = (
    "Combine these two sentences into one.",
    "Join these sentences.",
    "Make one smooth sentence out of these: {0}",
    "How can I write this as a single sentence? {0}",
    "Link the two sentences below so that they read as one.",
    "These sentences sound choppy. Put them together: {0}",
    "Merge into one sentence: {0}",
    "Write a single sentence that says both things: {0}",
)

PLAIN = """
The vehicle sustained considerable damage in the collision.
= The car was badly damaged in the crash.
Residents are requested to refrain from discarding refuse in the stairwell.
= Please do not leave trash in the stairwell.
Inclement weather necessitated the cancellation of the parade.
= The parade was canceled because of bad weather.
The physician recommended that he abstain from alcohol.
= The doctor told him not to drink alcohol.
Commencing in August, fares will be subject to an upward adjustment.
= Fares will go up in August.
The individual in question declined to furnish his name.
= The man would not give his name.
A lack of precipitation has adversely affected the harvest.
= Too little rain has hurt the harvest.
Patrons must extinguish all smoking materials prior to entry.
= Put out your cigarette before you come in.
The edifice was erected in the latter part of the eighteenth century.
= The building was put up in the late 1700s.
She endeavored to ascertain the cause of the disturbance.
= She tried to find out what was causing the noise.
Upon termination of employment, staff shall relinquish their keys.
= Give back your keys when you leave your job.
The medication may impair your capacity to operate machinery.
= This medicine can make it unsafe for you to use machines.
Applicants in possession of a valid permit are exempt from the charge.
= People with a valid permit do not have to pay.
The canine exhibited signs of hostility toward the courier.
= The dog was unfriendly to the delivery person.
It is imperative that the apparatus be disconnected from the power supply.
= You must unplug the machine.
The proprietor has elected to discontinue the sale of footwear.
= The owner has decided to stop selling shoes.
Funds were allocated for the refurbishment of the playground.
= Money was set aside to repair the playground.
The two accounts of the incident are mutually contradictory.
= The two stories about what happened do not agree.
Consumption of the berries is inadvisable owing to their toxicity.
= Do not eat the berries, because they are poisonous.
The orator elicited enthusiastic applause from those in attendance.
= The audience clapped loudly for the speaker.
Nocturnal temperatures are anticipated to decline below freezing.
= It is expected to freeze at night.
Passengers will be notified of any modification to the schedule.
= We will tell passengers if the schedule changes.
The juvenile was apprehended while attempting to purloin a bicycle.
= The boy was caught trying to steal a bicycle.
My remuneration is insufficient to meet my expenditure.
= I do not earn enough to pay for what I spend.
Kindly retain this receipt, as it constitutes proof of purchase.
= Keep this receipt to show that you paid.
The majority of respondents expressed a preference for the original recipe.
= Most people who answered liked the old recipe better.
"""

PLAIN_ASK = (
    "Rewrite this in plain English.",
    "Put the sentence into simple words.",
    "Simplify: {0}",
    "How would you say this to a ten-year-old?",
    "Say it more simply.",
    "Turn this stiff sentence into everyday English: {0}",
    "Rewrite the text so that anybody can understand it.",
)


def records(rng: random.Random) -> list[Record]:
    """Return the records about spelling, grammar, concision, plain words and joining sentences."""
    return [
        *dress("spelling", pairs(SPELLING), SPELLING_ASK, rng),
        *dress("grammar", pairs(GRAMMAR), GRAMMAR_ASK, rng),
        *dress("shorten", pairs(SHORTEN), SHORTEN_ASK, rng),
        *dress("plain language", pairs(PLAIN), PLAIN_ASK, rng),
        *dress("combine sentences", pairs(COMBINE), COMBINE_ASK, rng),
    ]
