"""Three small tasks of our own, for `hf-arch eval` and lm_eval: made from the words below, with no download.

- `sentence_completion`: a sentence without its last words, four endings.
- `word_association`: three words of one kind; which of four is another?
- `simple_qa`: a question about capitals, opposites, plurals, young animals, trades...; four answers of the same sort.

They are easy on purpose: models small enough for a CPU are above chance (25 %) on them long before on HellaSwag. The
rows are a function of this file alone. `tasks/*.yaml` makes them tasks of lm_eval.
"""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset, DatasetDict

CHOICES = 4

KINDS = """
dog cat horse cow sheep pig goat rabbit
eagle robin crow owl duck swan hawk sparrow
apple pear plum grape peach cherry lemon orange
red blue green yellow purple brown pink black
arm leg hand foot nose ear knee neck
mother father brother sister uncle aunt cousin son
rain snow wind storm cloud fog hail thunder
hammer saw nail drill axe spade shovel wrench
iron gold silver copper lead tin steel brass
shirt coat shoe hat sock dress glove scarf
table chair bed desk shelf sofa stool bench
river lake sea ocean pond stream pool creek
day week month year hour minute second century
drum flute violin piano guitar trumpet harp horn
bread cheese butter meat soup rice egg cake
oak pine elm maple birch willow cedar ash
car bus train ship boat truck plane bicycle
house church castle tower school barn palace temple
king queen prince duke knight lord baron earl
sword spear bow shield dagger arrow lance club
"""

QUESTIONS = {
    "What is the capital of {}?": """
France:Paris Italy:Rome Spain:Madrid Japan:Tokyo Russia:Moscow Egypt:Cairo Greece:Athens Germany:Berlin
China:Beijing England:London Ireland:Dublin Portugal:Lisbon Austria:Vienna Poland:Warsaw Cuba:Havana Norway:Oslo""",
    "What is the opposite of {}?": """
hot:cold big:small up:down early:late old:young rich:poor open:closed day:night light:dark fast:slow happy:sad
full:empty wet:dry strong:weak love:hate first:last""",
    "What is a young {} called?": """
cat:kitten dog:puppy cow:calf sheep:lamb horse:foal hen:chick goose:gosling duck:duckling bear:cub frog:tadpole
deer:fawn goat:kid""",
    "What is the plural of {}?": """
man:men child:children mouse:mice foot:feet tooth:teeth goose:geese ox:oxen knife:knives leaf:leaves wife:wives
woman:women loaf:loaves""",
    "What is the past tense of {}?": """
go:went see:saw take:took give:gave come:came run:ran eat:ate write:wrote speak:spoke know:knew think:thought
bring:brought""",
    "What comes right after {}?": """
Monday:Tuesday Tuesday:Wednesday Thursday:Friday Saturday:Sunday January:February March:April June:July
August:September October:November one:two four:five nine:ten spring:summer autumn:winter""",
    "Who {}?": """
bakes_bread:a_baker catches_fish:a_fisherman heals_the_sick:a_doctor teaches_children:a_teacher makes_clothes:a_tailor
cuts_hair:a_barber grows_corn:a_farmer sails_ships:a_sailor puts_out_fires:a_fireman shoes_horses:a_smith
flies_planes:a_pilot paints_pictures:a_painter""",
    "Where does a {} live?": """
bird:in_a_nest bee:in_a_hive spider:in_a_web fish:in_the_sea lion:in_a_den king:in_a_palace monk:in_a_monastery
horse:in_a_stable prisoner:in_a_prison soldier:in_a_barracks""",
    "What sound does a {} make?": """
dog:bark cat:meow cow:moo sheep:baa duck:quack lion:roar snake:hiss pig:oink owl:hoot wolf:howl""",
}

SENTENCES = """
She opened her umbrella because it had started to | rain | sing | cook | swim
He was so tired that he went straight to | bed | France | music | Monday
The fire was out and the room grew | cold | loud | green | rich
They walked along the beach and looked at the | sea | ceiling | kitchen | alphabet
The baby was hungry and began to | cry | drive | vote | write
He put on his coat and his | hat | river | spoon | winter
The cat chased the | mouse | cloud | house | song
I could not read the sign because it was too | dark | sweet | honest | heavy
At night we can see the moon and the | stars | fish | shoes | schools
She cut the bread with a | knife | pillow | letter | feather
The farmer milked the | cow | tractor | field | corn
He paid for the book with | money | rain | sleep | laughter
The king sat upon his | throne | soup | shadow | horizon
She wrote a letter and put it in an | envelope | oven | ocean | apple
The soldier drew his | sword | breakfast | birthday | neighbour
When the sun rose it became | light | midnight | thirsty | paper
He knocked, and somebody opened the | door | tree | sky | bread
The boy climbed up the | tree | soup | minute | idea
The ice melted because it was | warm | quiet | blue | late
She was ill, so they called a | doctor | dragon | carpenter | poem
We drink coffee from a | cup | shoe | hat | wall
The birds built a nest in the | tree | clock | pocket | lesson
In winter the lake was covered with | ice | bees | flowers | butter
The dog wagged its | tail | window | book | engine
He lost the key and could not open the | lock | rain | soup | joke
The teacher wrote on the | board | moon | wind | breakfast
They shouted, but nobody could | hear | taste | weigh | melt
The train arrived at the | station | spoon | kitchen | forest
She washed her hands with | soap | sand | ink | smoke
He was thirsty and asked for a glass of | water | stone | iron | wood
The ship sank to the bottom of the | sea | hill | roof | bed
They planted a seed and it grew into a | flower | bell | coin | ship
She laughed because the story was | funny | square | frozen | purple
The old man walked slowly with a | stick | storm | city | dream
He broke the window with a | stone | feather | whisper | cloud
The bride and the groom were | married | boiled | painted | planted
In the library we must be | quiet | hungry | wet | expensive
She cooked the soup in a | pot | bag | book | glove
The knight rode away on his | horse | table | apple | window
The thief was caught and put in | prison | love | bloom | tears
Bees make | honey | bread | cheese | paper
The candle burned until there was no | wax | moon | door | music
It was his birthday and she gave him a | present | fever | shadow | storm
The hunter shot an arrow from his | bow | boot | bed | barn
He looked at his watch to see the | time | smell | taste | price
The queen wore a golden | crown | potato | river | tunnel
Leaves fall from the trees in | autumn | church | secret | anger
She looked into the mirror and saw her own | face | voice | town | uncle
"""


def sentence_completion(**_metadata: Any) -> DatasetDict:
    """Rows of `question`, `choices` and `gold`, split `test`; so for the other two."""
    draw = random.Random("sentence_completion")
    lines = (line.split(" | ") for line in SENTENCES.strip().splitlines())
    return _test_split([_row(draw, sentence, right, wrong) for sentence, right, *wrong in lines])


def word_association(**_metadata: Any) -> DatasetDict:
    """For each kind, each of its words as the one to find."""
    draw = random.Random("word_association")
    kinds = [line.split() for line in KINDS.strip().splitlines()]
    rows = []
    for kind in kinds:
        others = [word for other in kinds if other is not kind for word in other]
        for right in kind:
            shown = draw.sample([word for word in kind if word != right], 3)
            rows.append(_row(draw, "Words of one kind: " + ", ".join(shown) + ",", right, _wrong(draw, others)))
    return _test_split(rows)


def simple_qa(**_metadata: Any) -> DatasetDict:
    """Wrong answers are right answers to questions of the same form, so that the form alone decides nothing."""
    draw = random.Random("simple_qa")
    rows = []
    for form, facts in QUESTIONS.items():
        pairs = [fact.replace("_", " ").split(":") for fact in facts.split()]
        for asked, right in pairs:
            others = [answer for _, answer in pairs if answer not in (asked, right)]
            rows.append(_row(draw, f"Question: {form.format(asked)}\nAnswer:", right, _wrong(draw, others)))
    return _test_split(rows)


def _wrong(draw: random.Random, words: list[str]) -> list[str]:
    return draw.sample(words, CHOICES - 1)


def _row(draw: random.Random, question: str, right: str, wrong: list[str]) -> dict[str, Any]:
    choices = [right, *wrong]
    draw.shuffle(choices)
    return {"question": question, "choices": choices, "gold": choices.index(right)}


def _test_split(rows: list[dict[str, Any]]) -> DatasetDict:
    return DatasetDict({"test": Dataset.from_list(rows)})
