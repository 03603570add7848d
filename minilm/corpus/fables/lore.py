"""The lore of the fables: trades, beasts, herbs, riddles, rhymes, and the makings of names.

What stands together between colons are facts, which hold in every story.
"""

# trade: where the work is done, with what, and what comes of it (plural)
CRAFT_LINES = """baker:bakery:oven:loaves miller:mill:sieve:pancakes cooper:yard:adze:barrels
potter:kiln:wheel:pots smith:forge:anvil:horseshoes weaver:loft:loom:rugs tailor:shop:needle:coats
cobbler:bench:awl:boots carpenter:workshop:saw:chairs mason:quarry:trowel:bricks farmer:field:plough:turnips
fisher:boat:net:herrings shepherd:hill:crook:cheeses tinker:cart:pliers:pans hatter:parlour:brush:hats
woodcutter:woodpile:axe:logs gardener:garden:spade:melons cook:kitchen:ladle:dumplings innkeeper:inn:jug:pies
brewer:brewery:paddle:kegs candlemaker:cellar:wick:candles clockmaker:attic:spring:clocks
locksmith:den:file:locks basketmaker:riverside:knife:baskets ropemaker:rope-walk:winch:ropes
sailmaker:sail-loft:palm:sails shipwright:dock:mallet:boats wheelwright:barn:spokeshave:wheels
saddler:stable:punch:saddles glover:corner-shop:thimble:gloves cutler:grindery:whetstone:knives
fletcher:range:glue-pot:arrows bookbinder:bindery:press:books mapmaker:chart-room:compass:maps
painter:studio:easel:portraits scribe:desk:quill:letters piper:bandstand:reed:flutes
fiddler:music-room:bow:fiddles drummer:guardhouse:drumstick:drums beekeeper:apiary:smoker:honeycombs
goatherd:pasture:whistle:kids orchardist:orchard:ladder:apples vintner:vineyard:barrel:bottles
grocer:corner:scales:lemons glassblower:glass-house:blowpipe:goblets goldsmith:counting-house:tongs:rings
jeweller:strongroom:lens:brooches lamplighter:street:pole:lamps bellfounder:foundry:mould:bells
toymaker:toyshop:glue:puppets kitemaker:tower:string:kites tanner:tannery:scraper:belts
thatcher:rooftop:rake:roofs sweep:chimney:broom:brushes ferrymaster:ferry:oar:rafts carter:wagon:whip:wagons
porter:gatehouse:barrow:trunks gravedigger:churchyard:shovel:epitaphs doctor:surgery:spoon:pills
midwife:infirmary:basin:bandages barber:barbershop:razor:wigs dentist:back-room:forceps:teeth
teacher:school:chalk:slates librarian:library:lamp:scrolls astronomer:observatory:telescope:star-charts
magician:hall:wand:rabbits juggler:fairground:club:hoops poet:garret:pen:ballads actor:theatre:mask:masks
printer:print-shop:roller:almanacs quilter:spinning-room:scissors:quilts dyer:dye-house:vat:scarves
furrier:cold-store:comb:muffs lacemaker:window:bobbin:collars stonecutter:stoneyard:chisel:statues
ratcatcher:granary:trap:tails birdcatcher:aviary:lure:cages fortune-teller:tent:crystal:charms
lighthouse-keeper:lighthouse:lantern:signals pastry-cook:pantry:rolling-pin:tarts
umbrella-mender:stall:ferrule:umbrellas cheesemaker:dairy:churn:cheese-wheels
nailmaker:smithy:tack-hammer:nails wigmaker:salon:curling-iron:hairpieces pilot:harbor:sextant:voyages
sexton:belfry:bell-rope:hymns""".split()

# beast: what it is known to be, where it lives, what it eats, what it fears, male or female
BEAST_LINES = """fox:sly:den:grapes:hound:m hare:swift:form:clover:hawk:m crow:clever:elm:crumbs:owl:m
wolf:hungry:lair:mutton:hunter:m bear:grumpy:cave:honey:bee:m mouse:small:mousehole:cheese:cat:f
cat:lazy:basket:cream:dog:f dog:loyal:kennel:bones:thunder:m goose:silly:farmyard:grass:fox:f
hen:fussy:henhouse:corn:weasel:f owl:wise:barn:mice:daylight:m heron:patient:reeds:frogs:eagle:f
frog:noisy:pond:flies:heron:m tortoise:slow:ditch:lettuce:winter:m donkey:stubborn:stable:thistles:whip:m
goat:bold:crag:nettles:wolf:f sheep:meek:fold:turnips:shears:f pig:greedy:sty:acorns:butcher:m
ox:strong:yard:hay:gadfly:m horse:proud:paddock:oats:spur:m lion:mighty:plain:venison:mouse:m
rat:cunning:cellar:bacon:terrier:m rooster:vain:dunghill:barley:kite:m duck:cheerful:duckpond:snails:pike:f
swan:graceful:lake:lilies:pike:f eagle:keen:cliff:hares:storm:m hawk:fierce:pine:sparrows:net:m
magpie:thieving:thicket:cherries:scarecrow:f otter:playful:riverbank:trout:trap:m
badger:gruff:burrow:worms:bulldog:m mole:blind:tunnel:grubs:flood:m hedgehog:prickly:hedge:slugs:cartwheel:m
squirrel:thrifty:oak:nuts:marten:f beaver:busy:lodge:bark:drought:m bee:hard-working:hive:nectar:wasp:f
ant:diligent:anthill:seeds:rain:f spider:crafty:web:gnats:broom:f snail:steady:wall:cabbages:thrush:m
cricket:merry:hearth:crusts:frost:m bat:shy:steeple:moths:lamp:m peacock:conceited:terrace:raisins:mirror:m
swallow:restless:eaves:midges:autumn:f robin:trusting:hawthorn:berries:cuckoo:m
sparrow:cheeky:gutter:chaff:hailstorm:m lark:joyful:furrow:spiders:sparrowhawk:f
raven:solemn:ruin:carrion:rifle:m stork:dutiful:chimney:eels:sweep:f crane:stately:fen:roots:fowler:f
pelican:generous:harbor:mackerel:gull:f gull:rude:jetty:herrings:gale:m
toad:ugly:cellar-step:beetles:plough:m newt:timid:well:tadpoles:bucket:m eel:slippery:weir:shrimps:spear:m
pike:cruel:millpond:minnows:hook:m trout:wary:stream:mayflies:angler:f
salmon:determined:waterfall:prawns:bear:m crab:crooked:rock-pool:limpets:octopus:m
whale:gentle:ocean:krill:harpoon:f seal:curious:sandbank:squid:shark:f
lamb:innocent:meadow:buttercups:eagle-owl:f kid:mischievous:rooftop:washing:lynx:m
colt:frisky:pasture:carrots:saddle:m mule:contrary:mine:straw:ghost:m camel:haughty:desert:dates:sandstorm:m
monkey:nosy:banyan:bananas:tiger:m parrot:talkative:cage:walnuts:silence:m
tiger:stealthy:jungle:buffaloes:fire:f elephant:forgetful:forest:melons:ant:m
leopard:elegant:tree-fork:antelopes:porcupine:f jackal:boastful:gully:leftovers:leopard:m
hyena:jolly:scrubland:marrowbones:lioness:f ostrich:foolish:sandhill:pebbles:cheetah:m
giraffe:dreamy:grove:leaves:crocodile:f crocodile:false:swamp:fish:elephant:m
rabbit:nervous:warren:dandelions:stoat:f stoat:ruthless:hollow-log:eggs:polecat:m
weasel:slender:woodpile:chicks:buzzard:m ferret:inquisitive:hutch:liver:terrier:m
wren:tiny:ivy:aphids:magpie:f nightingale:sweet-voiced:copse:mealworms:axe:f
woodpecker:tireless:birch:larvae:woodcutter:m cuckoo:selfish:treetop:caterpillars:stone:f
turkey:pompous:yard-corner:chestnuts:feast:m pigeon:faithful:dovecote:peas:falcon:f
dormouse:sleepy:teapot:hazelnuts:snow:m lizard:idle:sundial:crickets:shadow:m
grasshopper:carefree:haystack:dew:winter:m butterfly:fickle:rosebush:pollen:net:f
moth:reckless:wardrobe:wool:candle:m glow-worm:modest:bank:dewdrops:toad:f
earwig:misunderstood:dahlia:petals:heel:m boar:furious:bramble:truffles:spearman:m
deer:gentle-eyed:glade:bluebells:twig:f elk:lofty:tundra:moss:wolverine:m
bison:shaggy:prairie:sagebrush:railway:m""".split()

HERBS = """sage thyme mint comfrey yarrow nettle fennel rue tansy borage dill parsley rosemary lavender
chamomile feverfew betony burdock chervil chicory coltsfoot cowslip dandelion dock elder eyebright foxglove
garlic ginger horehound hyssop lovage lungwort mallow marjoram mugwort mullein mustard pennyroyal plantain
primrose purslane sorrel speedwell tarragon valerian vervain wormwood woodruff angelica""".split()

CURES = """a cough;a fever;a toothache;hiccups;warts;bad dreams;a sore back;a broken heart;chilblains;
a stiff neck;a bad temper;gout;nosebleeds;sneezing;sore feet;stage fright;homesickness;a black eye;
bee stings;boils;a cold;deafness;dizziness;earache;freckles;hay fever;heartburn;itching;jealousy;a limp;
lost memory;measles;melancholy;a quarrel;rheumatism;seasickness;shyness;sleeplessness;snoring;a sore throat;
spots;stammering;stomach ache;sunburn;tiredness;a twisted ankle;vertigo;weak knees;yawning;idleness"""

# what is it that...: the answer
RIDDLE_LINES = """has teeth but cannot bite:a comb;has a neck but no head:a bottle;
has hands but cannot clap:a clock;has legs but cannot walk:a table;has an eye but cannot see:a needle;
has ears but cannot hear:a field of corn;has a tongue but cannot talk:a shoe;runs but never walks:a river;
has a bed but never sleeps:a stream;gets wetter as it dries:a towel;goes up but never comes down:your age;
has keys but opens no door:a harpsichord;grows shorter the longer it stands:a candle;
has a face but no nose:a coin;can be broken by one word:silence;is full of holes but holds water:a sponge;
speaks every tongue:an echo;follows you all day and leaves at night:a shadow;has a spine but no bones:a book;
has roots that nobody sees:a mountain;flies without wings:time;weeps without eyes:a cloud;
has a ring but no finger:a bell;has a head and a tail but no body:a penny;
is yours but used by all your friends:your name;grows bigger the more you take away:a hole;
must be broken before it is used:an egg;has many leaves but no branches:a ledger;bites without a mouth:frost;
marries many but stays single:a priest;has one foot and no shoes:a hill;can be caught but not thrown:a cold;
whistles without lips:the wind;carries its house on its back:a snail;
eats all that it meets yet dies when it drinks:fire;
is lighter than a feather yet cannot be held for long:breath;has a mouth but never eats:a jug;
has no beginning and no end:a circle;lives in winter and dies in summer:a snowman;
goes round the house and leaves one track:a wheelbarrow"""

RHYMES = """cat hat mat rat bat;dog frog log hog bog;hen pen den wren;pig wig fig twig;
goat boat coat moat stoat;house mouse grouse;bear pear chair hare mare;king ring wing string sling;
fox box ox;bee tree key pea flea sea;cake lake snake rake drake;bell well shell;moon spoon tune baboon;
clock sock rock flock lock;door floor boar oar;crow bow doe toe hoe;light kite knight night bite;
bed sled shed thread head;jar star tar;stone bone throne cone;sheep heap leap;cow plough bough;
nest chest vest guest crest;bun nun sun;duck truck buck cluck;hill mill quill bill;pan fan man can swan;
pot knot cot dot;gate plate slate crate skate;nail whale sail tail pail snail;hook book cook brook rook;
drum plum thumb crumb;cup pup;bug jug mug rug slug;corn horn thorn fawn;goose moose;lamb ham dam ram;
wall ball shawl hall;vine line mine pine sign;glass brass pass"""

WOMEN = """Mira Nan Ada Ruth Clara Hazel Ivy Mabel Dora Nell Greta Wilma Olive Pearl Rosa Stella Tilda Una
Vera Agnes Beth Cora Daisy Edith Flora Gwen Hilda Ida Jenny Kitty Lucy Martha Nora Opal Polly Sally Susan
Thea Ursula Viola Winnie Alma Bess Celia Delia Emma Frances Grace Hannah Irene Judith Kate Lily Molly Netta
Olga Paula Rachel Sophie Tess Violet Wanda Zoe""".split()

MEN = """Hob Tom Bram Otto Jack Finn Hugo Abel Amos Caleb Ezra Felix Giles Henry Ivan Jasper Karl Leo Magnus
Ned Oscar Peter Quentin Rufus Simon Toby Victor Walter Adam Ben Conrad Dan Edgar Frank George Harold Isaac
Jacob Kit Luke Martin Nathan Oliver Paul Ralph Sam Tobias Ulrich Vincent Will Anton Basil Cuthbert Dominic
Eric Fred Gregory Humphrey Ignatius Jonas Kasper""".split()

NAME_STEMS = """Bel Cor Dal El Fen Gal Hal Is Jor Kel Lor Mar Nor Per Ros Sel Tam Ver Wil Yor Zel Ald Bran
Cael Dor Far Gor Hest Jan Lin Mel Nev Os Pel Rad Sab Tor Ulm Wen Yar Arv Brid Cass Drus Erm Gris Hav Jess
Kess Lav Nim Ott Pav Rem Sor Tib Vol Wyn Anst Alv Bard Berm Cald Dag Dend Ebb Edw Elf Fab Ferr Gild Gund Harv
Helv Ild Ing Jol Kand Lam Leon Lun Mad Merr Mil Nav Norr Od Orl Pram Quint Reg Ribb Rod Rund Salv Sig Stell
Tald Tolv Ulf Varr Verg Vid Walb Wint Xand Yest Zol""".split()

WOMENS_ENDINGS = "a ia ella ina wyn eth ora isa enna illa anne ette olda ine".split()

MENS_ENDINGS = "o in ric bert win ard us old mund ek an or is wick".split()

TWINS = """Pip and Pim;Hansel and Gretel;Castor and Pollux;Fritz and Franz;Dot and Dash;Rolf and Rosalind;
Zig and Zag;Biddy and Barnaby;Kip and Kay;Lotte and Lars;Minna and Max;Tam and Tib;Hodge and Podge;
Ralf and Rosie;Salt and Pepper;Thistle and Thorn;Wink and Nod;Ansel and Anselm;Bo and Beau;
Clem and Clementine;Dilly and Dally;Elva and Elvin;Gog and Magog;Ike and Mike;Jill and Joss;Lena and Lorenz;
Mog and Meg;Nip and Tuck;Odd and Even;Peg and Pat"""

TOWN_STEMS = """Ash Oak Elm Thorn Ket Wex Orl Hart Swan Crow Fox Mill Stone Marsh Long Green White Black Red
Wool Salt Win Har Hol Lang Pen Pol Tre Brock Cran Dun Eld Fern Glas Hazel Ing Kirk Lam Maple North Otter Plum
Raven Silver Tarn Under Wal Yew Barn Corn""".split()

TOWN_ENDINGS = "by ford ham ton wick mere dale stead combe worth bridge field".split()

FAR_STEMS = """Carr Zan Vel Mir Ist Bal Cal Dam Esk Fir Gol Har Jas Kor Lam Mor Nar Oss Pal Quor Sam Tark Urb
Xan Yld Zam""".split()

FAR_ENDINGS = "azon undra aspar oria essa agor imar antium opolis ovar".split()

RIVERS = """Wenn Isk Tarrow Lune Meer Dove Arrow Bure Cray Dart Eamont Fleet Glyme Hodder Irt Kyle Loam Mease
Nadder Orrin Piddle Quay Rill Swale Tamble Ure Vyrn Wye Yarty Alder Brew Clun Dee Esker Frome Gade Humble
Ivel Kennet Lark Mole Nidd Otter Perry Rother Stour Thrush Usk""".split()

COINS = """pennies crowns ducats florins groats shillings farthings guilders thalers talents kopecks
doubloons dinars nobles sequins marks""".split()

RULERS = """king:m queen:f duke:m duchess:f mayor:m abbess:f bishop:m empress:f sultan:m countess:f judge:m
princess:f prince:m baron:m governor:m regent:f sheriff:m admiral:m margravine:f vizier:m""".split()
