"""The common words of the fables, by what they can do in a sentence.

Within a list the earlier word is the more frequent, and the shorter ones come first, as in every language (Zipf
1935). forms.py inflects them. No two words that can stand in the same place are spelled alike.
"""

TOOLS = """key cup box map pot pan jug jar mug net oar axe saw hoe peg tub bag pin rod mat bin can fan pen
gem keg lid log mop orb tag tap urn cot pew top toy bow lamp rope bell drum book bowl coin ring bead harp
horn lute pipe gong kite doll hoop sled cart cage trap hook raft nail lock rake fork tile pole lens cane tray
comb mask yoke wand coil cord dial fife hose knob knot lyre pail pick plug prop pump rail ramp reel sign slab
sofa spit spur tank vane vase whip wire bolt buoy cask desk dish door idol tent knife spoon broom stone plate
chair stool table bench clock wheel crown flute hinge latch chain spade wedge brick plank quill sword spear
arrow ladle sieve flask crate trunk basin brush razor anvil drill slate staff stake stamp stick stove strap
swing torch wagon couch crank crook easel fence flint frame jewel lever mould pearl perch scoop screw shelf
shell skate spike stilt valve whisk medal globe chart basket candle bucket ladder kettle mirror needle hammer
barrel button locket brooch fiddle rattle puppet marble bridle paddle anchor chisel scythe sickle plough
trowel shovel shield helmet dagger statue goblet teapot saucer grater funnel bottle hamper casket trough
cradle tripod hatpin jigsaw mallet pestle string parcel pulley tablet tassel trophy carpet lantern whistle
thimble compass sundial inkwell pitcher skillet bracket beehive keyhole lectern padlock spindle stirrup
tankard treadle bracelet cauldron spyglass birdcage doorknob doorbell figurine fishhook flagpole gridiron
pendulum signpost snuffbox hourglass telescope corkscrew flowerpot footstool horseshoe mousetrap music-box
scarecrow tinderbox toothpick turnstile whetstone windchime washboard xylophone chessboard frying-pan
nutcracker pincushion candlestick paperweight rolling-pin tuning-fork weathercock wheelbarrow bellows-pump
watering-can rocking-horse walking-stick""".split()

CLOTHS = """hat cap rug wig bib pad rag tie coat shoe boot sock belt sack flag gown robe veil sail sash kilt
vest cuff hood muff sari toga wrap cape suit tutu ruff scarf glove shirt cloak apron purse quilt pouch shawl
towel smock tunic frock mitre plume ribbon pillow banner bonnet mitten sandal jacket saddle collar cravat
poncho bodice garter jerkin turban jersey mantle tabard blanket satchel curtain cushion slipper hammock
doormat doublet bow-tie stocking tapestry kerchief nightcap pinafore waistcoat petticoat bedspread dishcloth
tablecloth nightshirt breechcloth handkerchief""".split()

FOODS = """fig egg nut pea bun pie ham yam cob bap pear plum loaf bean cake tart leek beet date chop clam
lime roll rusk crab flan rind spud sloe taco apple onion lemon melon peach berry olive grape pasty scone
acorn wafer steak torte gourd mango prawn swede kebab bagel crepe guava jelly pecan prune whelk sprat carrot
turnip cherry cheese potato radish walnut quince orange muffin almond marrow tomato pickle kipper oyster
cutlet waffle noodle trifle toffee sprout lentil mussel pastry shrimp banana banger blintz cashew chilli
churro cookie damson eclair loquat lychee papaya peanut pepper quiche raisin sponge samosa cabbage pumpkin
apricot biscuit pancake sausage pretzel crumpet oatcake parsnip lettuce gherkin herring fritter pudding
shallot truffle currant rissole strudel sultana scallop avocado brownie chapati coconut cracker falafel
galette kumquat pikelet satsuma teacake bloater mushroom chestnut dumpling hazelnut cucumber mulberry
doughnut meatball omelette sandwich nut-roll beetroot flapjack jam-puff macaroon meringue plantain tamarind
tortilla veal-pie pork-pie artichoke raspberry sugarplum rice-ball bean-cake aubergine blueberry courgette
cranberry cream-bun croissant fish-cake greengage maize-cob mince-pie nectarine persimmon pineapple pistachio
quail-egg tangerine trout-pie rock-cake shortcake strawberry blackberry gooseberry crab-apple elderberry
ginger-nut olive-loaf wheat-cake pomegranate fennel-bulb spring-roll stuffed-egg celery-stick custard-tart
marzipan-pig pumpernickel sausage-roll treacle-tart""".split()

DRINKS = """tea ale gin rum milk soup stew wine beer mead whey grog water cider broth honey cream cocoa gruel
punch syrup perry coffee sherry whisky brandy claret chowder cordial porridge lemonade mint-tea rosewater
buttermilk nettle-beer barley-water""".split()

VESSELS = """cup jug mug pot jar keg urn vat can tub tin bowl pail cask glass flask ladle basin crock bottle
bucket barrel saucer beaker pitcher tankard spoonful ladleful""".split()

PILES = """heap pile row set load pair stack bundle hoard store host cartload armful sackful roomful
collection""".split()

CHESTS = "chest trunk crate hamper barrel wardrobe cupboard coffer".split()

JARS = "jar box basket casket bucket urn case pot".split()

PURSES = "purse pouch wallet locket thimble matchbox snuffbox seashell walnut-shell".split()

PLACES = """inn hut bay bog dam den fen pit sea mill well barn hill pond gate cave lake ford farm wall lane
maze pump quay weir wood arch bank camp cove dike dock dune fair fort glen hall isle jail keep kiln lawn loft
mine moat moor park path peak pier pool port road roof ruin shed shop tomb vale yard forge field tower marsh
attic dairy hedge jetty lodge shore stile swamp wharf abbey alley beach canal cliff coast court creek ditch
grove heath knoll ledge manor oasis plain porch ridge river slope spire stall track vault market bridge
meadow forest garden harbor castle stable cellar quarry valley school chapel bakery palace hollow kennel
larder pigsty spring stream tunnel belfry apiary arcade desert shrine street temple trench orchard kitchen
library cottage tannery brewery granary hayloft nunnery pasture rampart sawmill theatre cowshed village
vineyard windmill crossing dovecote fountain henhouse oak-wood tollgate turnpike workshop barracks duck-pond
ice-house milestone monastery town-hall warehouse watermill waterfall boathouse almshouse river-bank
lighthouse churchyard smokehouse bath-house observatory bowling-green""".split()

SIZES = """big wee fat low tiny long tall huge vast thin wide slim high small large great short heavy broad
bulky stout thick giant lanky little stubby slender enormous middling""".split()

LOOKS = """old new wet dry odd bad fine ugly worn warm cold bent dull holy rare cool drab flat full firm good
lost neat pale pure rich snug tidy dark hard soft bare shiny dusty rusty plain faded rough clean dirty muddy
cheap magic spare royal crude fancy grimy musty noble soggy loose round sharp sleek solid stiff tight weird
wonky grand frail light blank blunt broken pretty lovely stolen dented sturdy humble hollow smooth costly
carved useful bright ornate shabby flimsy secret dainty famous grubby mended narrow quaint ragged rustic
simple sacred sticky tawdry wobbly square cracked curious strange crooked ancient patched chipped stained
perfect useless elegant haunted foreign knobbly pointed rickety squeaky brittle battered borrowed splendid
polished ordinary precious handsome homemade delicate gleaming imperial lopsided nameless peculiar slippery
spotless tattered upturned valuable forgotten enchanted exquisite neglected scratched tarnished weathered
wonderful glittering mysterious unfinished second-hand""".split()

COLOURS = """red dun tan jet blue grey pink ruby pied gold rose teal fawn green black white brown ivory amber
ochre lilac azure mauve yellow purple orange violet russet indigo maroon scarlet crimson striped spotted
mustard emerald speckled rose-red ash-grey lavender sky-blue pale-blue turquoise chequered sea-green
vermilion dark-green snow-white coal-black cherry-red lime-green plum-coloured cream-coloured""".split()

HARD_STUFFS = """wooden iron copper silver brass tin clay oak bronze pewter steel lead walnut ebony cedar elm
ash pine cherrywood rosewood ironbound whalebone crystal granite soapstone porcelain gilded lacquered
enamelled""".split()

SOFT_STUFFS = """woollen linen leather silk velvet cotton felt canvas satin tweed flannel lace fur hemp
muslin knitted embroidered quilted sheepskin goatskin damask corduroy sackcloth calico brocade""".split()

TASTES = """big hot raw bad ripe sour warm cold wild soft hard rosy fine rich salt mild cool good tiny sweet
fresh juicy stale crisp plump wormy spicy salty dried baked burnt tasty plain moist sharp flaky lumpy little
bitter golden tender boiled mouldy rotten smoked stewed frozen greasy unripe smooth creamy sticky crusty
doughy bruised roasted pickled honeyed sugared candied peppery buttered overripe steaming enormous wrinkled
delicious flavourless""".split()

TEMPERS = """old shy coy mad odd kind poor rich lazy vain idle bold wary rude nosy mean calm mild neat tidy
wily daft deft dour fair fond glad glum good grim hale keen late lean lost loud meek pale pert prim rash sick
slow smug spry tall tame weak wild wise young proud brave merry tired hasty jolly noisy quiet stern timid
loyal happy fussy eager cross blunt bossy frank silly sulky surly witty gruff pious smart sober staid stout
sweet tough vague small plump honest clever lonely gentle greedy hungry humble gloomy grumpy solemn sleepy
polite famous fierce dreamy bright cranky crafty devout fickle frugal impish lively modest plucky silent
touchy untidy wicked shrewd strict strong blithe ragged foolish careful curious thrifty nervous jealous
hopeful envious bashful anxious cunning earnest haughty helpful miserly naughty patient playful prudent
serious tactful upright wistful worried zealous bearded cheerful stubborn careless generous wasteful fearless
cautious boastful faithful graceful gracious grateful homesick innocent obedient peaceful reckless restless
sensible spiteful studious tireless trusting freckled barefoot sunburnt forgetful dignified impatient
ingenious obstinate talkative persistent suspicious thoughtful ungrateful distrustful long-winded mischievous
quarrelsome thoughtless hard-working bad-tempered good-natured kind-hearted quick-witted soft-hearted
absent-minded superstitious tender-hearted""".split()

AIRS = """old new icy wet dry hot far low big red odd dark cold busy damp vast wild warm near high safe grey
mean bare lost good drab dull cosy tidy grim flat quiet empty windy sunny shady muddy mossy steep misty snowy
green noisy dusty bleak sandy rocky leafy leaky grand burnt rainy smoky stony small white black ruined lonely
famous narrow sleepy gloomy silent grassy locked humble chilly frosty hidden secret sunlit crowded distant
haunted flooded ancient moonlit shadowy winding deserted draughty bustling cheerful fragrant nameless
peaceful pleasant spacious forgotten overgrown abandoned crumbling enchanted neglected tumbledown unfinished
ivy-covered whitewashed""".split()

DAY_AIRS = """wet hot icy dry raw sad cold grey warm fine dull busy damp dark fair hazy lazy mild pale cool
soft long blue windy clear misty sunny quiet snowy rainy crisp dusty foggy gusty muggy murky soggy still
fresh chill short happy black white bright frosty stormy lovely bitter breezy chilly cloudy dreary golden
sleepy sultry silver drizzly strange glorious ordinary pleasant thundery""".split()

ADVERBS = """idly well fast late sadly shyly oddly again aloud twice daily gaily badly madly coyly dryly
slyly slowly softly gladly loudly gently kindly calmly boldly wisely warily fondly firmly feebly humbly
lazily meekly mildly neatly rudely vainly warmly wildly sourly tamely tartly quickly quietly proudly happily
bravely eagerly sternly wearily hastily merrily sweetly gravely faintly briskly angrily crossly heavily
lightly stiffly sulkily swiftly timidly vaguely politely gloomily grumpily dreamily drowsily bitterly
absently cleverly fiercely greedily hungrily joyfully modestly promptly secretly silently sleepily smoothly
solemnly tenderly wickedly carefully nervously patiently foolishly earnestly bashfully awkwardly anxiously
curiously hopefully jealously playfully seriously unhappily wistfully cheerfully gratefully doubtfully
cautiously carelessly faithfully fearlessly generously gracefully helplessly innocently mournfully obediently
peacefully stubbornly tirelessly impatiently thoughtfully suspiciously""".split()

ADVERBIALS = """at once;at last;in vain;by turns;all day;all night;for hours;with care;with glee;as ever;
like mad;half asleep;with a grin;in tears;for joy;on tiptoe;once more;in a rage;out loud;for fun;in the end"""

MOVES = """go run hop jog fly row walk ride skip limp race slip plod rush trot dash roam wade flee hike jump
leap pace roll sail step trek dart dive edge flit inch lope scud skim slog veer hurry climb march creep dance
crawl drift strut weave amble bound sidle slink sneak stomp whirl glide skate slide stray tramp drive float
grope lurch mosey prowl scoot skulk slope speed stalk sweep whizz wander trudge stroll tiptoe gallop ramble
scurry sprint stride toddle totter waddle canter hobble lumber prance charge cruise dawdle gambol hasten
hurtle paddle patter potter spring streak tumble stumble saunter shuffle stagger swagger meander scamper
scuttle shamble slither squelch thunder traipse flounder leapfrog scramble""".split()

TAKES = """buy get win beg want take earn hire rent swap pick steal fetch claim order lease borrow choose
accept demand gather obtain inherit receive collect purchase""".split()

HANDLES = """see own hug eye tug rub pat find lose keep hide drop hold sell lift need love lend push pull
send like grab spot pawn toss save seek wrap pack drag miss bury kick kiss move show turn wave wear flip poke
prod shun stow yank hurl haul hang envy carry catch bring guard seize covet hoard fling grasp nudge pinch
press raise scorn shake shift shove study swing twirl throw touch trust value whack guess greet fancy curse
blame avoid adore admire forget mislay unwrap unpack clutch cradle dangle flaunt juggle jiggle pocket praise
rattle rescue batter display examine inspect reclaim squeeze deliver cherish discover treasure""".split()

MAKES = """fix oil dye tie wax tar dry sew make mend draw copy wash dent tune glue trim wipe hone sand dust
test tilt gild soak fold file buff chip daub fill heat iron mark nail plan soil sort tidy wind cool burn bend
paint carve build clean break weigh scrub patch shape label smash rinse stain bless crack empty price shine
spoil stack trace twist wreck alter adorn polish design repair finish sketch bleach grease number shrink
stitch mangle adjust measure restore engrave varnish scratch sharpen decorate assemble embroider straighten""".split()

EATS = """eat fry try cut dip ice cook peel bake chew boil salt bite lick mash stew chop core cube dice gnaw
melt pare sear wolf share taste slice roast steam munch sniff spice mince serve toast grill grate crush knead
pluck poach pound scoff spurn sugar nibble devour gobble butter pickle squash relish guzzle reheat savour
season simmer sample swallow spit-roast""".split()

ACTS = """hum nod sob nap bow sing weep yawn wait sigh grin sulk doze moan pray rest sway swim wink gasp mope
pout wail fret gape gaze itch pant play pose rock work beam sleep laugh dream smile snore blink shrug cough
frown stare blush groan kneel scowl snort stoop swoon grunt think croon chant drool sneeze shiver giggle
hiccup mutter wobble fidget loiter mumble ponder dither whistle tremble grumble stretch stammer chatter
chuckle quarrel rejoice shudder whimper whisper""".split()

SAYS = """say cry add beg sob vow coo sigh call bark boom gasp hiss howl moan purr rasp roar sing snap urge
wail warn yawn yell bray quip reply laugh shout agree growl boast admit argue croak croon drawl groan grunt
plead scoff snarl sneer sniff snort whine chirp answer mutter murmur insist bellow giggle mumble quaver
remark scream shriek squeak squeal wheeze squawk whisper declare grumble explain confess exclaim observe
promise protest stammer suggest whimper announce complain""".split()

SKY = """sea sun air sky ice dew moon wind rain snow fog path road mud hay tide dawn dusk night day frost
river grass light wheat corn mill well house wood town""".split()

SKY_STATES = """wet low dry red cold calm dark warm high grey pale soft hot still quiet clear bright gentle
bitter golden silver silent strange peaceful beautiful dangerous empty lovely black white blue""".split()

PATHS = "to past toward around behind beyond through across".split()

SPOTS = "in;at;by;near;beside;behind;beyond;inside;outside;far from;close to;next to;down by;up by;facing;opposite"

SOUNDS = """a knock;a cough;a sigh;a song;a crash;a whistle;a sneeze;a bell;a splash;a giggle;a thud;
a squeak;a roar;a hum;music;a drum;a groan;laughter;thunder;singing;snoring;a flute;weeping;a shout;a creak;
a howl;a bang;a hiss;a yawn;a horn;a cry;a yell;a bark"""

KIN = """mother father sister brother aunt uncle cousin grandmother grandfather neighbor niece nephew
landlady great-aunt godmother godfather great-uncle stepmother stepfather twin apprentice mother-in-law""".split()

URGES = """began hoped longed meant dared vowed swore learned failed agreed decided refused started pretended
prepared""".split()

MEETINGS = """met spied passed heard noticed joined chased tickled visited followed overtook startled watched
questioned recognized trailed pestered""".split()

GIVINGS = "gave owed handed promised offered denied left granted awarded".split()

SYLLABLES = """ba be bi bo bu da de di do du fa fe fi fo fum ga gi go ha hee hi ho hum ja jo ka ki ko la lee
li lo lu lum ma mee mi mo mum na nee ni no num pa pee pi po pum ra ree ri ro rum sa see si so ta tee ti to
tum va vee vo wa wee za zee zi zo zum tra tri tro tick tock ding dong ping pong bim bam bom flip flap flop
hey nonny diddle fiddle rumble tumble fizz buzz whizz presto pronto hocus pocus""".split()

MONTHS = "January February March April May June July August September October November December".split()

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

DAYPARTS = "morning evening afternoon night day".split()

SMALL_NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
