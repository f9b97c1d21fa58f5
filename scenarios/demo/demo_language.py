"""The made-up language of the demo model.

`document(seed)` returns one paragraph.  It is a pure function of its integer
seed: no global state, no clock, no library generator that may change between
Python versions (the draws come from a SplitMix64 stream written out below).

The text has structure that a language model can learn and that an edit of its
weights can damage:

* two people per paragraph are bound to a name, a trade, a town, a thing they
  own, its colour and a count; every later mention has to agree with that;
* pronouns, possessives and reflexives follow the person they stand for;
* verbs agree with a subject that may lie a relative clause or two away, with
  nouns of the other number in between;
* bracketed marks are balanced, nested up to four deep;
* sums, differences and comparisons of whole numbers are right;
* lists are repeated, or repeated backwards;
* days of the week follow each other.

Roughly a third of the tokens are free choices; the rest follow from them.
"""

MASK = (1 << 64) - 1


class Stream:
    """SplitMix64 with the few draws that the grammar needs."""

    def __init__(self, seed):
        self.state = seed & MASK

    def word(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        """An integer of 0..n-1 (the bias of the product method is under 2^-50)."""
        return (self.word() * n) >> 64

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def pick(self, items):
        return items[self.below(len(items))]

    def sample(self, items, count):
        """`count` different items, in the order drawn."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]

    def chance(self, numerator, denominator):
        return self.below(denominator) < numerator


WOMEN = "Mara Elin Sofia Tilda Nora Ida Runa Vera Hedda Lena Petra Olga Jana Minna Rosa Cora".split()
MEN = "Tomas Anton Bruno Oskar Karl Emil Viktor Jonas Pavel Leon Hugo Felix Marco Ivan Stefan Otto".split()
TRADES = (
    "baker miller weaver potter smith tailor farmer sailor hunter carpenter mason "
    "brewer fisher painter doctor teacher gardener printer cooper shepherd"
).split()
TOWNS = (
    "Oster Valdin Merrow Kestrel Brenwick Tarn Holm Silvan Rusk Darrow Elmet Fenby "
    "Gorse Lindal Norby Quarne Selby Thorne Ulver Wexley"
).split()
# (singular, plural)
THINGS = [
    tuple(pair.split("/"))
    for pair in (
        "lamp/lamps rope/ropes bell/bells jug/jugs key/keys basket/baskets drum/drums map/maps "
        "barrel/barrels mirror/mirrors candle/candles blanket/blankets knife/knives boat/boats "
        "ladder/ladders coin/coins book/books chair/chairs kettle/kettles flute/flutes "
        "cup/cups ring/rings wheel/wheels hammer/hammers"
    ).split()
]
BEASTS = [
    tuple(pair.split("/"))
    for pair in "goose/geese horse/horses goat/goats dog/dogs sheep/sheep hen/hens mule/mules cat/cats".split()
]
COLOURS = "red blue green white black yellow brown grey purple golden".split()
PLACES = (
    "river bridge mill harbour market chapel forest well tower meadow gate orchard lake quarry"
).split()
QUALITIES = (
    "old new heavy light broken clean cheap rare strong small large plain round dusty polished bent"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
# (third person singular, plural)
DEEDS = [
    tuple(pair.split("/"))
    for pair in (
        "sells/sell mends/mend carries/carry paints/paint hides/hide counts/count "
        "cleans/clean borrows/borrow watches/watch finds/find"
    ).split()
]
# (third person singular, plural) of what a person does to a person
DEALINGS = [
    tuple(pair.split("/"))
    for pair in "knows/know trusts/trust visits/visit fears/fear helps/help praises/praise follows/follow".split()
]
PAST_DEALINGS = "thanked praised visited blamed warned helped greeted paid trusted".split()
REFLEXIVES = "blamed hurt praised taught washed warned surprised".split()
SIGNS = list("abcdefghkmnprstvwxyz")
PAIRS = [("(", ")"), ("[", "]"), ("{", "}"), ("<", ">")]


class Person:
    """One of the two people that a paragraph is about, with all bound facts."""

    def __init__(self, woman, name, trade, town, thing, colour, count):
        self.woman = woman
        self.name = name
        self.trade = trade
        self.town = town
        self.thing = thing
        self.colour = colour
        self.count = count
        self.they = "she" if woman else "he"
        self.them = "her" if woman else "him"
        self.their = "her" if woman else "his"
        self.self = "herself" if woman else "himself"

    def goods(self):
        """The things as counted now: `1 red lamp`, `4 red lamps`."""
        return f"{self.count} {self.colour} {self.thing[self.count != 1]}"


def upper(text):
    return text[0].upper() + text[1:]


def people(s):
    """Two people who share no fact but, half of the time, their gender."""
    first_woman, second_woman = s.chance(1, 2), s.chance(1, 2)
    women, men = s.sample(WOMEN, 2), s.sample(MEN, 2)
    trades, towns = s.sample(TRADES, 2), s.sample(TOWNS, 2)
    things, colours = s.sample(THINGS, 2), s.sample(COLOURS, 2)
    return [
        Person(
            woman,
            (women if woman else men)[i],
            trades[i],
            towns[i],
            things[i],
            colours[i],
            s.between(2, 20),
        )
        for i, woman in enumerate((first_woman, second_woman))
    ]


def introduction(s, who):
    form = s.below(4)
    if form == 0:
        return f"{who.name} the {who.trade} lives in {who.town} and owns {who.goods()}."
    if form == 1:
        return f"In {who.town} there lives a {who.trade} called {who.name}, and {who.they} owns {who.goods()}."
    if form == 2:
        return f"{who.name} is a {who.trade} from {who.town}; {who.they} has {who.goods()} at home."
    return f"The {who.trade} of {who.town} is {who.name}, who keeps {who.goods()} by the {s.pick(PLACES)}."


def trade_of_goods(s, who, other):
    """Arithmetic: the count moves and is named again."""
    if who.count > 4 and s.chance(1, 2):
        part = s.between(1, who.count - 2)
        verb = s.pick(["gave", "sold", "lent"])
        who.count -= part
        tail = s.pick([f"so {who.they} kept {who.goods()}", f"which left {who.them} {who.goods()}"])
        return f"On {s.pick(DAYS)} {who.name} {verb} {part} of {who.their} {who.thing[1]} to {other.name}, {tail}."
    part = s.between(2, 12)
    verb = s.pick(["bought", "found", "made"])
    who.count += part
    return f"On {s.pick(DAYS)} {who.name} {verb} {part} more {who.thing[1]}, so now {who.they} has {who.goods()}."


def comparison(s, first, second):
    a, b = s.between(20, 79), s.between(20, 79)
    while a == b:
        b = s.between(20, 79)
    older, younger = (first, second) if a > b else (second, first)
    if s.chance(1, 2):
        return f"{first.name} is {a} and {second.name} is {b}, so {older.name} is older than {younger.name}."
    return f"{first.name} is {a} and {second.name} is {b}, so {younger.name} is younger than {older.name}."


def sums(s):
    a, b = s.between(2, 20), s.between(2, 20)
    c = s.between(1, a + b - 1)
    return f"The book says {a} + {b} = {a + b} and {a + b} - {c} = {a + b - c}."


def attractor(s, plural):
    """A phrase between subject and verb, with a noun of either number."""
    form = s.below(4)
    if form == 0:
        return f" by the {s.pick(QUALITIES)} {s.pick(PLACES)}"
    if form == 1:
        other = s.chance(1, 2)
        return f" near the {s.pick(BEASTS)[other]}"
    if form == 2:
        trade, many = s.pick(TRADES), s.chance(1, 2)
        deed = s.pick(DEEDS)
        return f" that the {trade}{'s' if many else ''} {deed[many]}"
    # Two clauses, one inside the other: the verbs close in reverse order.
    inner, outer = s.sample(TRADES, 2)
    inner_many, outer_many = s.chance(1, 2), s.chance(1, 2)
    dealing, deed = s.pick(DEALINGS), s.pick(DEEDS)
    return (
        f" that the {outer}{'s' if outer_many else ''} that the {inner}{'s' if inner_many else ''} "
        f"{dealing[inner_many]} {deed[outer_many]}"
    )


def agreement(s):
    """Subject and verb of equal number, far apart."""
    plural = s.chance(1, 2)
    subject = s.pick(THINGS)[plural]
    be, have = ("are", "have") if plural else ("is", "has")
    form = s.below(3)
    if form == 0:
        tail = f"{be} {s.pick(QUALITIES)}"
    elif form == 1:
        tail = f"{be} {s.pick(QUALITIES)} and {be} not {s.pick(COLOURS)}"
    else:
        tail = f"{have} lost {'their' if plural else 'its'} {s.pick(COLOURS)} paint"
    return f"The {subject}{attractor(s, plural)} {tail}."


def pronouns(s, first, second):
    form = s.below(4)
    if form == 0:
        return f"{first.name} {s.pick(REFLEXIVES)} {first.self}, and {second.name} {s.pick(REFLEXIVES)} {second.self}."
    if form == 1:
        return (
            f"The {first.trade} {s.pick(PAST_DEALINGS)} {second.name} the {second.trade} "
            f"near {first.their} {s.pick(PLACES)} in {first.town}."
        )
    if form == 2:
        return f"When {first.name} came to {second.town}, {first.they} hid {first.their} {first.colour} {first.thing[1]} from {second.name}."
    return f"{first.name} said that {first.they} {s.pick(PAST_DEALINGS)} the {second.trade} {s.pick(['and', 'but not'])} {second.their} {s.pick(BEASTS)[1]}."


def marks(s):
    """A balanced string of brackets with single letters inside."""
    pieces, open_marks = [], []
    budget = s.between(4, 6)
    while budget or open_marks:
        can_open = budget and len(open_marks) < 4
        if can_open and (not open_marks or s.chance(3, 5)):
            pair = s.pick(PAIRS)
            pieces.append(pair[0])
            open_marks.append(pair[1])
            budget -= 1
            if s.chance(1, 3):
                pieces.append(s.pick(SIGNS))
        else:
            pieces.append(open_marks.pop())
    return f"The mark on the {s.pick(THINGS)[0]} reads {' '.join(pieces)} and no more."


def lists(s, who):
    items = [f"{article(t[0])} {t[0]}" for t in s.sample(THINGS, 3)]
    packed = f"{items[0]}, {items[1]} and {items[2]}"
    if s.chance(1, 2):
        back = f"{items[2]}, {items[1]} and {items[0]}"
        return f"{who.name} packed {packed}, and in reverse {who.they} unpacked {back}."
    return f"{who.name} ordered {packed}, and in time {who.they} received {packed}."


def article(noun):
    return "an" if noun[0] in "aeiou" else "a"


def days(s):
    day = s.below(7)
    return f"If today is {DAYS[day]}, tomorrow is {DAYS[(day + 1) % 7]} and yesterday was {DAYS[(day - 1) % 7]}."


def recall(s, who):
    form = s.below(4)
    if form == 0:
        return f"Everyone in {who.town} asks {who.name} the {who.trade} about {who.their} {who.thing[1]}."
    if form == 1:
        return f"The {who.colour} {who.thing[1]} belong to the {who.trade}, that is, to {who.name} of {who.town}."
    if form == 2:
        return f"Who owns the {who.colour} {who.thing[1]}? It is {who.name}, the {who.trade} of {who.town}."
    return f"Where does the {who.trade} live? {upper(who.they)} lives in {who.town} with {who.their} {who.thing[1]}."


def closing(first, second):
    return (
        f"In the end {first.name} of {first.town} has {first.goods()}, "
        f"and {second.name} of {second.town} has {second.goods()}."
    )


def document(seed):
    """One paragraph of about 100 to 170 tokens, a pure function of `seed`."""
    s = Stream(seed)
    first, second = people(s)
    sentences = [introduction(s, first), introduction(s, second)]
    # Drawn without replacement, so that paragraphs are about equally hard.
    for kind in s.sample(range(8), 5):
        who, other = (first, second) if s.chance(1, 2) else (second, first)
        if kind == 0:
            sentences.append(trade_of_goods(s, who, other))
        elif kind == 1:
            sentences.append(comparison(s, who, other) if s.chance(1, 2) else sums(s))
        elif kind == 2:
            sentences.append(agreement(s))
        elif kind == 3:
            sentences.append(pronouns(s, who, other))
        elif kind == 4:
            sentences.append(marks(s))
        elif kind == 5:
            sentences.append(lists(s, who) if s.chance(1, 2) else days(s))
        elif kind == 6:
            sentences.append(recall(s, who))
        else:
            sentences.append(agreement(s))
    sentences.append(closing(first, second))
    return " ".join(sentences)
