"""The world of the fables: who lives where, what is made there, and what everybody fears.

Some fifteen thousand facts, all fixed: they cost a writer nothing and a reader must remember them. The words that have
them are drawn from lists with a Zipf tail, so that each is met less often than the one before it, and a larger model
keeps finding more to learn.
"""

import zlib
from itertools import product

from minilm.corpus.fables import lexicon, lore
from minilm.corpus.fables.forms import adjective, noun, verb
from minilm.corpus.fables.words import equal_words, integer, zipf_words

AGREEMENT = {
    "m": {"he": "he", "him": "him", "his": "his", "was": "was"},
    "f": {"he": "she", "him": "her", "his": "her", "was": "was"},
    "both": {"he": "they", "him": "them", "his": "their", "was": "were"},
}


def lists():
    """List name -> Words: everything that a slot of the grammar can draw from."""
    made = {
        "size": zipf_words(map(adjective, lexicon.SIZES)),
        "look": zipf_words(map(adjective, lexicon.LOOKS)),
        "colour": zipf_words(map(adjective, lexicon.COLOURS)),
        "hard": zipf_words(map(adjective, lexicon.HARD_STUFFS)),
        "soft": zipf_words(map(adjective, lexicon.SOFT_STUFFS)),
        "taste": zipf_words(map(adjective, lexicon.TASTES)),
        "temper": zipf_words(map(adjective, lexicon.TEMPERS)),
        "air": zipf_words(map(adjective, lexicon.AIRS)),
        "day-air": zipf_words(map(adjective, lexicon.DAY_AIRS)),
        "tool": zipf_words(map(noun, lexicon.TOOLS)),
        "cloth": zipf_words(map(noun, lexicon.CLOTHS)),
        "thing": zipf_words(map(noun, sorted(lexicon.TOOLS + lexicon.CLOTHS, key=len))),
        "food": zipf_words(map(noun, lexicon.FOODS)),
        "vessel": zipf_words(map(noun, lexicon.VESSELS)),
        "drink": zipf_words(map(_plain, lexicon.DRINKS)),
        "place": zipf_words(map(noun, lexicon.PLACES)),
        "adverb": zipf_words([*map(_plain, lexicon.ADVERBS), *_phrases(lexicon.ADVERBIALS)]),
        "move": zipf_words(map(verb, lexicon.MOVES)),
        "take": zipf_words(map(verb, lexicon.TAKES)),
        "handle": zipf_words(map(verb, lexicon.HANDLES)),
        "make": zipf_words(map(verb, lexicon.MAKES)),
        "eat": zipf_words(map(verb, lexicon.EATS)),
        "act": zipf_words(map(verb, lexicon.ACTS)),
        "meeting": zipf_words(map(_plain, lexicon.MEETINGS)),
        "urge": zipf_words(map(_plain, lexicon.URGES)),
        "giving": zipf_words(map(_plain, lexicon.GIVINGS)),
        "say": zipf_words(map(verb, lexicon.SAYS)),
        "sky-part": zipf_words(map(_plain, lexicon.SKY)),
        "sky-state": zipf_words(map(_plain, lexicon.SKY_STATES)),
        "syllable": equal_words({"": syllable, "T": syllable.title()} for syllable in lexicon.SYLLABLES),
        "path": zipf_words(map(_plain, lexicon.PATHS)),
        "spot": zipf_words(_phrases(lexicon.SPOTS)),
        "sound": zipf_words(_phrases(lexicon.SOUNDS)),
        "kin": zipf_words(map(_plain, lexicon.KIN)),
        "month": equal_words(map(_plain, lexicon.MONTHS)),
        "weekday": equal_words(map(_plain, lexicon.WEEKDAYS)),
        "daypart": zipf_words(map(_plain, lexicon.DAYPARTS)),
        "pile": zipf_words(map(noun, lexicon.PILES)),
        "chest": zipf_words(map(noun, lexicon.CHESTS)),
        "jar": zipf_words(map(noun, lexicon.JARS)),
        "purse": zipf_words(map(noun, lexicon.PURSES)),
        "ruler": zipf_words(map(_ruler, lore.RULERS)),
        "herb": zipf_words(_herbs()),
        "riddle": zipf_words(_riddles()),
        "few": zipf_words(({"": word, "n": n} for n, word in enumerate(lexicon.SMALL_NUMBERS, 2))),
    }
    made["rhyme"] = zipf_words(_rhymes())
    made |= _numbers()
    made["town"] = zipf_words(_towns(lore.TOWN_STEMS, lore.TOWN_ENDINGS, 300))
    made["far"] = zipf_words(_towns(lore.FAR_STEMS, lore.FAR_ENDINGS, 200))
    made["trade"] = zipf_words(map(_trade, lore.CRAFT_LINES))
    made["animal"] = zipf_words(map(_beast, lore.BEAST_LINES))
    for beast in made["animal"].records:
        beast["home"] = _dealt(beast[""], "home", made["town"])
        beast["pet"] = _dealt(beast[""], "pet", made["animal"])
    made["simile"] = zipf_words(_similes(made))
    made |= _people(made)
    _befriend(made)
    return made


def _plain(word):
    return {"": word}


def _phrases(text):
    return [{"": " ".join(phrase.split())} for phrase in text.split(";")]


def _coined(stems, endings):
    """Every stem with every ending, in an order as good as random, without those that are hard to say."""
    names = [
        stem + ending
        for stem, ending in product(stems, endings)
        if stem[-2:] != 2 * ending[0] and stem[-1] + ending[0] not in ("tt", "ww")
    ]
    return sorted(names, key=lambda name: zlib.crc32(name.encode()))


def _dealt(name, purpose, words):
    """One of the words, as good as drawn by lot, but fixed by the name and the purpose."""
    return words.records[zlib.crc32(f"{purpose} of {name}".encode()) % len(words.records)]


def _ruler(line):
    name, sex = line.split(":")
    return {"": name, **AGREEMENT[sex]}


def _herbs():
    ailments = _phrases(lore.CURES)
    return [
        {"": herb, "T": herb.title(), "cure": ailments[i * 17 % len(ailments)]} for i, herb in enumerate(lore.HERBS)
    ]


def _riddles():
    pairs = [" ".join(line.split()).split(":") for line in lore.RIDDLE_LINES.split(";")]
    return [{"": question, "answer": {"A": answer[0].upper() + answer[1:]}} for question, answer in pairs]


def _rhymes():
    records = []
    for line in lore.RHYMES.split(";"):
        group = [noun(word) for word in line.split()]
        for record in group:
            mates = [mate for mate in group if mate is not record]
            record["mate"] = equal_words(mates)
        records += group
    return sorted(records, key=lambda record: zlib.crc32(record[""].encode()))


def _similes(made):
    """as sly as a fox"""
    return [{"": beast["epithet"][""], "of": beast["a"]} for beast in made["animal"].records]


def _numbers():
    """`number` is 3 to 99, all equally likely; each knows those `below` it, from 2 up, and those `unlike` it."""
    integers = [integer(n) for n in range(100)]
    number = integers[3:]
    for n, record in enumerate(number, 3):
        record["below"] = equal_words(integers[2:n])
        record["unlike"] = equal_words([other for other in number if other is not record])
    return {
        "number": equal_words(number),
        "score": equal_words(integers[20:]),
        "digit": equal_words(integers[2:10]),
        "hour": equal_words(integers[1:13]),
        "date": equal_words(integers[1:29]),
        "minute": equal_words({"": f"{minute:02}"} for minute in range(0, 60, 5)),
    }


def _towns(stems, endings, size):
    names = _coined(stems, endings)[:size]
    return [
        {
            "": name,
            "river": {"": lore.RIVERS[zlib.crc32(name.encode()) % len(lore.RIVERS)]},
            "coin": {"": lore.COINS[zlib.crc32(f"coin {name}".encode()) % len(lore.COINS)]},
        }
        for name in names
    ]


def _trade(line):
    name, place, tool, ware = line.split(":")
    return noun(name) | {"place": _plain(place), "tool": noun(tool), "ware": _plain(ware)}


def _beast(line):
    name, epithet, lair, food, fear, sex = line.split(":")
    return (
        noun(name)
        | _character(sex, f"the {name}")
        | {"epithet": adjective(epithet), "lair": _plain(lair), "food": _plain(food), "fear": _plain(fear)}
    )


def _character(sex, the):
    """Everything that pronouns and verbs need to agree with."""
    agreement = AGREEMENT[sex]
    return agreement | {"He": agreement["he"].capitalize(), "the": the, "The": the[0].upper() + the[1:]}


def _person(name, sex):
    return {"": name} | _character(sex, name)


def _people(made):
    """`person`, who may be the hero; `folk`, who are only spoken of; and a `pair` of twins, who are "they"."""
    taken = {record[""] for name in ("town", "far") for record in made[name].records} | set(lore.RIVERS)
    women = [
        name for name in dict.fromkeys(lore.WOMEN + _coined(lore.NAME_STEMS, lore.WOMENS_ENDINGS)) if name not in taken
    ]
    men = [
        name
        for name in dict.fromkeys(lore.MEN + _coined(lore.NAME_STEMS, lore.MENS_ENDINGS))
        if name not in {*taken, *women}
    ]
    couples = list(zip(women, men, strict=False))
    casts = {
        "person": [_person(name, sex) for couple in couples[0::2] for name, sex in zip(couple, "fm", strict=True)],
        "folk": [_person(name, sex) for couple in couples[1::2] for name, sex in zip(couple, "fm", strict=True)],
        "pair": [_person(names[""], "both") for names in _phrases(lore.TWINS)],
    }
    towns = made["town"].records
    for cast in casts.values():
        for i, record in enumerate(cast):
            name = record[""]
            record["home"] = towns[7 * i % len(towns)]
            record["trade"] = _dealt(name, "trade", made["trade"])
            record["pet"] = _dealt(name, "pet", made["animal"])
            record["dish"] = _dealt(name, "dish", made["food"])
            record["temper"] = _dealt(name, "temper", made["temper"])
    return {name: zipf_words(cast) for name, cast in casts.items()}


def _befriend(made):
    """The lists that a word has of its own: who lives in a town, who has a trade, who is of the other sex."""
    for owner, key, fact in (("town", "native", "home"), ("trade", "fellow", "trade")):
        groups = {record[""]: [] for record in made[owner].records}
        for record in made["person"].records:
            groups[record[fact][""]].append(record)
        for record in made[owner].records:
            record[key] = zipf_words(groups[record[""]])
    for cast, key in (("person", "other"), ("animal", "rival")):
        records = made[cast].records
        sexes = {he: zipf_words([r for r in records if r["he"] == he]) for he in ("he", "she")}
        for record in records:
            record[key] = sexes["she" if record["he"] == "he" else "he"]
    for twins in made["pair"].records:
        twins["other"] = made["person"]
