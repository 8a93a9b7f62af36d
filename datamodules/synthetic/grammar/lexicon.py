"""The words of the built-in corpus, in both languages, with every form that the grammar uses.

English and German match one to one wherever the grammar could choose, so that a sentence has one translation. Nouns
that English does not inflect ("sheep") and verbs whose past looks like the present ("read") are left out: they are
ambiguous.
"""

from typing import Literal

from datamodules.synthetic.grammar.phrases import (
    Adjective,
    Conjunction,
    EnglishVerb,
    Gender,
    GermanVerb,
    Noun,
    Preposition,
    Verb,
    Words,
)

_GENDERS: dict[str, Gender] = {"m": "masculine", "f": "feminine", "n": "neuter"}

# English, comparative | German, stem where an ending changes it, comparative. "-": the grammar does not compare it.
_ADJECTIVES = """
tired -                         | müde müd -
hungry -                        | hungrig hungrig -
thirsty -                       | durstig durstig -
lazy -                          | faul faul -
sick -                          | krank krank -
weak -                          | schwach schwach -
nervous -                       | nervös nervös -
happy -                         | glücklich glücklich -
friendly -                      | freundlich freundlich -
young younger                   | jung jung jünger
old older                       | alt alt älter
big bigger                      | groß groß größer
small smaller                   | klein klein kleiner
beautiful more_beautiful        | schön schön schöner
new newer                       | neu neu neuer
white -                         | weiß weiß -
black -                         | schwarz schwarz -
brown -                         | braun braun -
red -                           | rot rot -
wide wider                      | breit breit breiter
deep deeper                     | tief tief tiefer
long longer                     | lang lang länger
narrow narrower                 | schmal schmal schmaler
dark darker                     | dunkel dunkl dunkler
wet -                           | nass nass -
slippery -                      | glatt glatt -
dangerous more_dangerous        | gefährlich gefährlich gefährlicher
heavy heavier                   | schwer schwer schwerer
expensive more_expensive        | teuer teur teurer
cheap cheaper                   | billig billig billiger
cold -                          | kalt kalt -
hot -                           | heiß heiß -
sour -                          | sauer saur -
salty -                         | salzig salzig -
"""

# English, plural | German, plural | gender, "weak" if all forms but the nominative singular end in -(e)n | adjectives.
# "-" as the plural: a substance.
_NOUNS = """
man men               | Mann Männer       | m      | old young friendly tired sick happy
boy boys              | Junge Jungen      | m weak | young small friendly tired hungry happy
teacher teachers      | Lehrer Lehrer     | m      | old young friendly tired sick
doctor doctors        | Arzt Ärzte        | m      | old young friendly tired
farmer farmers        | Bauer Bauern      | m weak | old young friendly tired happy
woman women           | Frau Frauen       | f      | old young friendly tired sick happy
mother mothers        | Mutter Mütter     | f      | young friendly tired sick happy
aunt aunts            | Tante Tanten      | f      | old young friendly sick happy
child children        | Kind Kinder       | n      | small friendly tired sick hungry happy
girl girls            | Mädchen Mädchen   | n      | young small friendly tired happy
dog dogs              | Hund Hunde        | m      | old young small big white black brown hungry
donkey donkeys        | Esel Esel         | m      | old young small white brown hungry
bear bears            | Bär Bären         | m weak | old young big black brown hungry
cat cats              | Katze Katzen      | f      | old young small white black hungry
cow cows              | Kuh Kühe          | f      | old young big white black brown
goat goats            | Ziege Ziegen      | f      | old young small white black hungry
animal animals        | Tier Tiere        | n      | old young small big white brown
horse horses          | Pferd Pferde      | n      | old young big white black brown
pig pigs              | Schwein Schweine  | n      | old young small big black hungry
street streets        | Straße Straßen    | f      | wide long narrow dark dangerous
bridge bridges        | Brücke Brücken    | f      | old new long narrow
meadow meadows        | Wiese Wiesen      | f      | big small wet
river rivers          | Fluss Flüsse      | m      | wide deep long dangerous
lake lakes            | See Seen          | m      | deep big small
field fields          | Feld Felder       | n      | big small wet
house houses          | Haus Häuser       | n      | old new big small white beautiful
room rooms            | Zimmer Zimmer     | n      | big small dark narrow
kitchen kitchens      | Küche Küchen      | f      | new big small dark
garden gardens        | Garten Gärten     | m      | old big small beautiful
forest forests        | Wald Wälder       | m      | old big dark
cellar cellars        | Keller Keller     | m      | old small dark wet
cave caves            | Höhle Höhlen      | f      | dark deep narrow
town towns            | Stadt Städte      | f      | old big small beautiful
village villages      | Dorf Dörfer       | n      | old small beautiful
school schools        | Schule Schulen    | f      | old new big small
station stations      | Bahnhof Bahnhöfe  | m      | old new big small
tree trees            | Baum Bäume        | m      | old big beautiful
car cars              | Auto Autos        | n      | old new red black white expensive cheap
bicycle bicycles      | Fahrrad Fahrräder | n      | old new red black expensive cheap
book books            | Buch Bücher       | n      | old new heavy red expensive cheap
letter letters        | Brief Briefe      | m      | long old beautiful
picture pictures      | Bild Bilder       | n      | old new beautiful expensive
lamp lamps            | Lampe Lampen      | f      | old new white small expensive cheap
table tables          | Tisch Tische      | m      | old new big heavy expensive
chair chairs          | Stuhl Stühle      | m      | old new small red cheap
coat coats            | Mantel Mäntel     | m      | old new long black wet expensive
suitcase suitcases    | Koffer Koffer     | m      | old new big heavy black
bag bags              | Tasche Taschen    | f      | old new small heavy brown
box boxes             | Kiste Kisten      | f      | old big small heavy
package packages      | Paket Pakete      | n      | big small heavy
stone stones          | Stein Steine      | m      | big small heavy white
cart carts            | Wagen Wagen       | m      | old big heavy
door doors            | Tür Türen         | f      | old new white heavy
window windows        | Fenster Fenster   | n      | old new big small
train trains          | Zug Züge          | m      | old new long
apple apples          | Apfel Äpfel       | m      | red small sour
carrot carrots        | Karotte Karotten  | f      | small big old
soup -                | Suppe -           | f      | hot cold salty
milk -                | Milch -           | f      | hot cold sour
coffee -              | Kaffee -          | m      | hot cold black
cheese -              | Käse -            | m      | old salty
bread -               | Brot -            | n      | white black old
water -               | Wasser -          | n      | hot cold
number numbers        | Zahl Zahlen       | f      |
euro euros            | Euro Euro         | m      |
year years            | Jahr Jahre        | n      |
metre metres          | Meter Meter       | m      |
inhabitant inhabitants | Einwohner Einwohner | m   |
"""

# English base, third person, past, participle, progressive | German infinitive, third person, past, participle.
# "get+up": the particle follows every form. "auf+stehen": the prefix separates. "!sein": the perfect takes "sein".
# "!perception" has no progressive, "!state" no perfect either.
_VERBS = """
sleep sleeps slept slept sleeping           | schlafen schläft schlief geschlafen
work works worked worked working            | arbeiten arbeitet arbeitete gearbeitet
play plays played played playing            | spielen spielt spielte gespielt
wait waits waited waited waiting            | warten wartet wartete gewartet
sit sits sat sat sitting                    | sitzen sitzt saß gesessen
stand stands stood stood standing           | stehen steht stand gestanden
sing sings sang sung singing                | singen singt sang gesungen
dance dances danced danced dancing          | tanzen tanzt tanzte getanzt
swim swims swam swum swimming               | schwimmen schwimmt schwamm geschwommen !sein
live lives lived lived living               | wohnen wohnt wohnte gewohnt !state
go goes went gone going                     | gehen geht ging gegangen !sein
run runs ran run running                    | laufen läuft lief gelaufen !sein
drive drives drove driven driving           | fahren fährt fuhr gefahren !sein
get+up gets got got getting                 | auf+stehen steht stand gestanden !sein
wake+up wakes woke woken waking             | auf+wachen wacht wachte gewacht !sein
fall+asleep falls fell fallen falling       | ein+schlafen schläft schlief geschlafen !sein
arrive arrives arrived arrived arriving     | an+kommen kommt kam gekommen !sein
come+back comes came come coming            | zurück+kommen kommt kam gekommen !sein
buy buys bought bought buying               | kaufen kauft kaufte gekauft
sell sells sold sold selling                | verkaufen verkauft verkaufte verkauft
find finds found found finding              | finden findet fand gefunden !perception
look+for looks looked looked looking        | suchen sucht suchte gesucht
see sees saw seen seeing                    | sehen sieht sah gesehen !perception
forget forgets forgot forgotten forgetting  | vergessen vergisst vergaß vergessen !perception
need needs needed needed needing            | brauchen braucht brauchte gebraucht !state
know knows knew known knowing               | kennen kennt kannte gekannt !state
repair repairs repaired repaired repairing  | reparieren repariert reparierte repariert
clean cleans cleaned cleaned cleaning       | putzen putzt putzte geputzt
write writes wrote written writing          | schreiben schreibt schrieb geschrieben
visit visits visited visited visiting       | besuchen besucht besuchte besucht
cross crosses crossed crossed crossing      | überqueren überquert überquerte überquert
enter enters entered entered entering       | betreten betritt betrat betreten
carry carries carried carried carrying      | tragen trägt trug getragen
pull pulls pulled pulled pulling            | ziehen zieht zog gezogen
drink drinks drank drunk drinking           | trinken trinkt trank getrunken
eat eats ate eaten eating                   | essen isst aß gegessen
pick+up picks picked picked picking         | ab+holen holt holte geholt
call calls called called calling            | an+rufen ruft rief gerufen
open opens opened opened opening            | auf+machen macht machte gemacht
close closes closed closed closing          | zu+machen macht machte gemacht
invite invites invited invited inviting     | ein+laden lädt lud geladen
switch+on switches switched switched switching | ein+schalten schaltet schaltete geschaltet
tidy+up tidies tidied tidied tidying        | auf+räumen räumt räumte geräumt
help helps helped helped helping            | helfen hilft half geholfen
thank thanks thanked thanked thanking       | danken dankt dankte gedankt
follow follows followed followed following  | folgen folgt folgte gefolgt !sein
give gives gave given giving                | geben gibt gab gegeben
show shows showed shown showing             | zeigen zeigt zeigte gezeigt
send sends sent sent sending                | schicken schickt schickte geschickt
cost costs cost cost costing                | kosten kostet kostete gekostet !state
say says said said saying                   | sagen sagt sagte gesagt !perception
hope hopes hoped hoped hoping               | hoffen hofft hoffte gehofft !perception
believe believes believed believed believing | glauben glaubt glaubte geglaubt !state
"""


def _columns(line: str) -> list[list[str]]:
    return [column.split() for column in line.split("|")]


def _adjective(line: str) -> Adjective:
    (english, english_comparative), (german, stem, german_comparative) = _columns(line)
    return Adjective(english, english_comparative.replace("_", " "), german, stem, german_comparative)


def _noun(line: str) -> Noun:
    (english, english_plural), (german, german_plural), (gender, *weak), adjectives = _columns(line)
    oblique = german_plural if weak else german
    mass = english_plural == "-"
    return Noun(english, english_plural, german, oblique, german_plural, _GENDERS[gender], tuple(adjectives), mass)


def _verb(line: str) -> Verb:
    english, german = _columns(line)
    head, _, particle = english[0].partition("+")
    forms = [f"{form} {particle}" if particle else form for form in (head, *english[1:])]
    marks = {word[1:] for word in german if word.startswith("!")}
    kind: Literal["action", "perception", "state"] = "action"
    if "perception" in marks or "state" in marks:
        kind = "state" if "state" in marks else "perception"
    return Verb(EnglishVerb(*forms), _german_verb(german[:4], "sein" if "sein" in marks else "haben"), kind)


def _german_verb(forms: list[str], auxiliary: Literal["haben", "sein"]) -> GermanVerb:
    prefix, _, infinitive = forms[0].rpartition("+")
    return GermanVerb(
        infinitive=prefix + infinitive,
        first_person=infinitive.removesuffix("n"),
        third_person=forms[1],
        plural=infinitive,
        past=forms[2],
        participle=prefix + forms[3],
        auxiliary=auxiliary,
        prefix=prefix,
    )


def _table(text: str) -> list[str]:
    return text.strip().splitlines()


ADJECTIVES: dict[str, Adjective] = {item.english: item for item in map(_adjective, _table(_ADJECTIVES))}
NOUNS: dict[str, Noun] = {item.english: item for item in map(_noun, _table(_NOUNS))}
VERBS: dict[str, Verb] = {item.english.base: item for item in map(_verb, _table(_VERBS))}

# What German says differently: animals "fressen" where people "essen", and one "weiß" a fact but "kennt" a person.
FEED = _verb("eat eats ate eaten eating | fressen frisst fraß gefressen")
KNOW_FACT = Verb(
    EnglishVerb("know", "knows", "knew", "known", "knowing"),
    GermanVerb("wissen", "weiß", "weiß", "wissen", "wusste", "gewusst", "haben"),
    "state",
)
BE = Verb(
    EnglishVerb("be", "is", "was", "been", "being"),
    GermanVerb("sein", "bin", "ist", "sind", "war", "gewesen", "sein"),
    "state",
)

HAVE = Verb(
    EnglishVerb("have", "has", "had", "had", "having"),
    GermanVerb("haben", "habe", "hat", "haben", "hatte", "gehabt", "haben"),
    "state",
)

IN = Preposition("in", "in", "dative")
IN_THE_OPEN = Preposition("in", "auf", "dative")
ON = Preposition("on", "auf", "dative")
UNDER = Preposition("under", "unter", "dative")
BEHIND = Preposition("behind", "hinter", "dative")
NEXT_TO = Preposition("next to", "neben", "dative")
IN_FRONT_OF = Preposition("in front of", "vor", "dative")
BY = Preposition("by", "an", "dative")
WITH = Preposition("with", "mit", "dative")
TO = Preposition("to", "zu", "dative")
OUT_OF = Preposition("out of", "aus", "dative")
INTO = Preposition("into", "in", "accusative")
THROUGH = Preposition("through", "durch", "accusative")
ACROSS = Preposition("across", "über", "accusative")
FOR = Preposition("for", "für", "accusative")
WITHOUT = Preposition("without", "ohne", "accusative")

BECAUSE = Conjunction("because", "weil", "weil")
ALTHOUGH = Conjunction("although", "obwohl", "obwohl")
WHEN = Conjunction("when", "wenn", "als")
THAT = Conjunction("that", "dass", "dass")

NEVER = Words("never", "nie")
ALREADY = Words("already", "schon")
OFTEN = Words("often", "oft")
ALWAYS = Words("always", "immer")

YESTERDAY = Words("yesterday", "gestern")
TODAY = Words("today", "heute")
TOMORROW = Words("tomorrow", "morgen")
NOW = Words("now", "jetzt")
LAST_WEEK = Words("last week", "letzte Woche")
NEXT_WEEK = Words("next week", "nächste Woche")
EVERY_DAY = Words("every day", "jeden Tag")
ON_MONDAY = Words("on Monday", "am Montag")
IN_THE_MORNING = Words("in the morning", "am Morgen")
IN_THE_EVENING = Words("in the evening", "am Abend")

SLOWLY = Words("slowly", "langsam")
QUICKLY = Words("quickly", "schnell")
EARLY = Words("early", "früh")
LATE = Words("late", "spät")
