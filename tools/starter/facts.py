"""Short factual questions, each with its own wording, answered in one complete sentence."""

from __future__ import annotations

import random

from .record import Record, pairs

GEOGRAPHY = """
What is the capital of Portugal?
= The capital of Portugal is Lisbon.
Which city is the capital of Kenya?
= The capital of Kenya is Nairobi.
Name the capital of New Zealand.
= The capital of New Zealand is Wellington.
Tell me the capital city of Peru.
= The capital of Peru is Lima.
Is Sydney the capital of Australia?
= No, the capital of Australia is Canberra.
I always forget: what is the capital of Turkey?
= The capital of Turkey is Ankara.
Which is the largest ocean on Earth?
= The Pacific Ocean is the largest ocean on Earth.
On which continent is Egypt's capital, Cairo?
= Cairo is in Africa.
What is the longest river in South America?
= The Amazon is the longest river in South America.
Which mountain is the highest above sea level?
= Mount Everest is the highest mountain above sea level.
What language do most people in Brazil speak?
= Most people in Brazil speak Portuguese.
Name the country that is shaped like a boot.
= Italy is the country shaped like a boot.
Which sea lies between Europe and Africa?
= The Mediterranean Sea lies between Europe and Africa.
Through which city does the river Thames flow on its way to the North Sea?
= The Thames flows through London.
What currency is used in Japan?
= The currency of Japan is the yen.
Which is the only country that borders Portugal on land?
= Spain is the only country that borders Portugal on land.
In which country can you visit Machu Picchu?
= Machu Picchu is in Peru.
What is the smallest country in the world by area?
= Vatican City is the smallest country in the world by area.
Which U.S. state is made up entirely of islands?
= Hawaii is made up entirely of islands.
Name the desert that covers much of northern Africa.
= The Sahara covers much of northern Africa.
Which country has Reykjavik as its capital?
= Reykjavik is the capital of Iceland.
What is the capital of Canada?
= The capital of Canada is Ottawa.
Name the strait between Spain and Morocco.
= The Strait of Gibraltar separates Spain from Morocco.
In which mountain range is Mont Blanc?
= Mont Blanc is in the Alps.
What are the two official languages of Finland?
= The official languages of Finland are Finnish and Swedish.
How many states does the United States have?
= The United States has 50 states.
Which canal joins the Mediterranean Sea to the Red Sea?
= The Suez Canal joins the Mediterranean Sea to the Red Sea.
What is the capital of Poland?
= The capital of Poland is Warsaw.
Which country lies directly north of the contiguous United States?
= Canada lies directly north of the contiguous United States.
Near which large city does the Statue of Liberty stand?
= The Statue of Liberty stands in New York Harbor, near New York City.
Name the imaginary line that divides the Earth into northern and southern halves.
= The equator divides the Earth into northern and southern halves.
Which African country was formerly called Abyssinia?
= Ethiopia was formerly called Abyssinia.
What is the capital of Vietnam?
= The capital of Vietnam is Hanoi.
Which island country was once known as Ceylon?
= Sri Lanka was once known as Ceylon.
Into which sea does the Danube flow?
= The Danube flows into the Black Sea.
What is the coldest continent?
= Antarctica is the coldest continent.
Which city is known for canals, gondolas and St. Mark's Square?
= Venice is known for canals, gondolas and St. Mark's Square.
What is the capital of Argentina?
= The capital of Argentina is Buenos Aires.
Which country is home to the city of Marrakesh?
= Marrakesh is in Morocco.
Can you tell me which ocean washes the east coast of the United States?
= The Atlantic Ocean washes the east coast of the United States.
What is the capital of South Korea?
= The capital of South Korea is Seoul.
Which lake in Siberia is the deepest in the world?
= Lake Baikal is the deepest lake in the world.
"""

SCIENCE = """
What gas do plants take in for photosynthesis?
= Plants take in carbon dioxide for photosynthesis.
How many legs does an insect have?
= An insect has six legs.
Which planet is closest to the sun?
= Mercury is the planet closest to the sun.
At what temperature does water boil at sea level, in Celsius?
= Water boils at 100 degrees Celsius at sea level.
What is the chemical symbol for sodium?
= The chemical symbol for sodium is Na.
Which organ pumps blood through the body?
= The heart pumps blood through the body.
Why does ice float on water?
= Ice floats on water because it is less dense than liquid water.
What do we call an animal that eats only plants?
= An animal that eats only plants is called a herbivore.
How many chromosomes are in a normal human body cell?
= A normal human body cell has 46 chromosomes.
Which metal is liquid at room temperature and was once used in thermometers?
= Mercury is the metal that is liquid at room temperature.
What force keeps the planets in orbit around the sun?
= Gravity keeps the planets in orbit around the sun.
Name the largest planet in our solar system.
= Jupiter is the largest planet in our solar system.
What is the hardest natural mineral?
= Diamond is the hardest natural mineral.
Which vitamin does the skin make in sunlight?
= The skin makes vitamin D in sunlight.
How long does the Earth take to go once around the sun?
= The Earth takes about 365 days to go once around the sun.
What are clouds made of?
= Clouds are made of tiny drops of water or crystals of ice.
What is the chemical formula of water?
= The chemical formula of water is H2O.
Is a tomato a fruit or a vegetable to a botanist?
= To a botanist, a tomato is a fruit.
Which travels faster, light or sound?
= Light travels faster than sound.
What do bees collect from flowers to make honey?
= Bees collect nectar to make honey.
How many planets are there in the solar system?
= There are eight planets in the solar system.
What instrument is used to measure air pressure?
= A barometer is used to measure air pressure.
Which gas makes up most of the air?
= Nitrogen makes up most of the air.
What do we call a scientist who studies fossils?
= A scientist who studies fossils is called a paleontologist.
What does a caterpillar turn into?
= A caterpillar turns into a butterfly or a moth.
Name the process by which a liquid becomes a gas.
= The process by which a liquid becomes a gas is called evaporation.
How many bones does an adult human usually have?
= An adult human usually has 206 bones.
Which part of a plant takes up water from the soil?
= The roots take up water from the soil.
What unit is used to measure electric current?
= Electric current is measured in amperes.
What causes the tides?
= The tides are caused mainly by the gravity of the moon.
Which blood cells carry oxygen?
= Red blood cells carry oxygen.
What is the atomic number of carbon?
= The atomic number of carbon is 6.
Are dolphins fish?
= No, dolphins are mammals.
Why do we see lightning before we hear thunder?
= We see lightning first because light travels much faster than sound.
What is table salt made of, chemically?
= Table salt is made of sodium chloride.
Which planet is famous for its bright, wide rings?
= Saturn is famous for its bright, wide rings.
What do you call molten rock that has reached the surface?
= Molten rock that has reached the surface is called lava.
How many hearts does an octopus have?
= An octopus has three hearts.
What color do you get by mixing blue and yellow paint?
= Mixing blue and yellow paint gives green.
Which is the largest land animal alive today?
= The African bush elephant is the largest land animal alive today.
What is the center of an atom called?
= The center of an atom is called the nucleus.
Which organs filter waste from the blood to make urine?
= The kidneys filter waste from the blood to make urine.
What is the name of our galaxy?
= Our galaxy is called the Milky Way.
Which animal is the tallest in the world?
= The giraffe is the tallest animal in the world.
Do spiders have six legs or eight?
= Spiders have eight legs.
What do scientists call the study of weather?
= The study of weather is called meteorology.
Which element has the symbol Fe?
= Iron has the symbol Fe.
How do fish take in oxygen?
= Fish take in oxygen through their gills.
What makes iron rust?
= Iron rusts when it is exposed to oxygen and water.
Which sense organ contains the retina?
= The eye contains the retina.
Is the sun a red giant, a white dwarf or a yellow dwarf?
= The sun is a yellow dwarf.
What do we call animals that are active at night?
= Animals that are active at night are called nocturnal.
Which gas in the upper atmosphere protects us from ultraviolet light?
= Ozone protects us from ultraviolet light.
How many teeth does an adult have, counting the wisdom teeth?
= An adult has 32 teeth, counting the wisdom teeth.
"""

HISTORY = """
Which of the Brontë sisters wrote "Jane Eyre"?
= Charlotte Brontë wrote "Jane Eyre."
In which year did the Second World War end?
= The Second World War ended in 1945.
Who was the first person to walk on the moon?
= Neil Armstrong was the first person to walk on the moon.
Which ancient people built the pyramids at Giza?
= The ancient Egyptians built the pyramids at Giza.
Who painted the ceiling of the Sistine Chapel?
= Michelangelo painted the ceiling of the Sistine Chapel.
Name the author of "On the Origin of Species."
= Charles Darwin is the author of "On the Origin of Species."
When did the Berlin Wall fall?
= The Berlin Wall fell in 1989.
Which playwright created Hamlet?
= William Shakespeare created Hamlet.
Who was the first president of the United States?
= George Washington was the first president of the United States.
What ship sank on its first voyage in April 1912?
= The Titanic sank on its first voyage in April 1912.
Which scientist discovered polonium and radium together with her husband?
= Marie Curie discovered polonium and radium together with her husband.
Who introduced printing with movable metal type to Europe in the fifteenth century?
= Johannes Gutenberg introduced printing with movable metal type to Europe.
In what year did the French Revolution begin?
= The French Revolution began in 1789.
Which novel about a whale hunt has the famous line "Call me Ishmael"?
= The line "Call me Ishmael" comes from "Moby-Dick."
Who composed the opera "The Magic Flute"?
= Wolfgang Amadeus Mozart composed "The Magic Flute."
What was the language of ancient Rome?
= The language of ancient Rome was Latin.
Who led India's campaign of nonviolent resistance to British rule?
= Mahatma Gandhi led India's campaign of nonviolent resistance to British rule.
Which Greek poet is said to have composed the "Odyssey"?
= Homer is said to have composed the "Odyssey."
Who was president of the United States during the American Civil War?
= Abraham Lincoln was president during the American Civil War.
Which detective lives at 221B Baker Street?
= Sherlock Holmes lives at 221B Baker Street.
What wall did the Romans build across northern England?
= The Romans built Hadrian's Wall across northern England.
Who wrote the novel "Frankenstein"?
= Mary Shelley wrote "Frankenstein."
In which year did Columbus first reach the Americas?
= Columbus first reached the Americas in 1492.
Which empire did Genghis Khan found?
= Genghis Khan founded the Mongol Empire.
Which Dutch artist painted "The Night Watch"?
= Rembrandt painted "The Night Watch."
What did the Wright brothers achieve in 1903?
= The Wright brothers made the first sustained, powered airplane flight in 1903.
Who was the South African leader released from prison in 1990 and elected president in 1994?
= Nelson Mandela was released in 1990 and elected president in 1994.
Which Spanish writer told the adventures of Don Quixote?
= Miguel de Cervantes told the adventures of Don Quixote.
Which volcano buried Pompeii in the year 79?
= Mount Vesuvius buried Pompeii in the year 79.
Who wrote the diary published as "The Diary of a Young Girl"?
= Anne Frank wrote "The Diary of a Young Girl."
What document did King John of England seal in 1215?
= King John of England sealed Magna Carta in 1215.
Who was the last queen of the Ptolemaic dynasty in Egypt?
= Cleopatra was the last queen of the Ptolemaic dynasty.
Which composer went on writing music after he had lost his hearing?
= Ludwig van Beethoven went on writing music after he had lost his hearing.
Who formulated the three laws of motion in the "Principia"?
= Isaac Newton formulated the three laws of motion.
What trade route linked China with the Mediterranean for centuries?
= The Silk Road linked China with the Mediterranean.
Which Russian novelist wrote "War and Peace"?
= Leo Tolstoy wrote "War and Peace."
Who was the first woman to fly solo across the Atlantic?
= Amelia Earhart was the first woman to fly solo across the Atlantic.
When did the United States declare its independence?
= The United States declared its independence in 1776.
What is the name of the island where Napoleon died?
= Napoleon died on Saint Helena.
Which city hosted the first modern Olympic Games in 1896?
= Athens hosted the first modern Olympic Games in 1896.
"""


def records(rng: random.Random) -> list[Record]:
    """Return the records about geography, science, history and literature. Every request is written out by hand."""
    del rng
    tables = {"geography": GEOGRAPHY, "science": SCIENCE, "history and literature": HISTORY}
    return [Record(kind, question, "", answer) for kind, text in tables.items() for question, answer in pairs(text)]
