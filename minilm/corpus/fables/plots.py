"""Fourteen plots, as rules of the grammar: a title, a hero, something at stake, and a moral from what happened."""

NOTATION = """
story:
   10 | <quest>.//
    9 | <bargain>.//
    9 | <contest>.//
    9 | <lost>.//
    8 | <visitor>.//
    8 | <lesson>.//
    7 | <box>.//
    9 | <market>.//
    7 | <riddles>.//
    7 | <secret>.//
    8 | <wedding>.//
    9 | <song>.//
   10 | <will>.//
    9 | <soup>.//

# The hero comes in.
intro:
    6 | [person =hero] <hero-is> {hero.He} <trait>
    3 | In [town =t], on the river {t.river}, lived [native@t =hero], [temper.a =q] {hero.trade}. {hero.He}
        <trait>
    3 | There was once [trade.a =t] named [fellow@t =hero], who lived in {hero.home}. {hero.He} <trait>
    2 | The twins [pair =hero] were [temper =q] {hero.trade.s} from {hero.home}. {hero.He} <trait>

hero-is:
    4 | was [temper.a =q] {hero.trade} from {hero.home}.
    2 | the {hero.trade} lived in {hero.home}, on the river {hero.home.river}.
    1 | of {hero.home} was called {hero.temper}.

trait:
    3 | {hero.was} as [simile =q] as {q.of}, and owned <a-thing>.
    2 | loved {hero.dish.s} and [drink] more than [food.s].
    2 | kept {hero.pet.a}, which ate nothing but {hero.pet.food}.
    3 | lived by the <place> with <a-beast>.
    4 | had <a-thing>, <a-thing> and [number] {hero.home.coin}.

# A quest for a thing that cures somebody or pays well.
quest:
    1 | The Quest for the [look.T =state] [thing@state.T =prize]/<intro> <call>

call:
    3 | One [day-air] [daypart] {hero.his} [kin =sick] fell ill. "Only the {state} {prize} of [far =goal] can
        help," [say.ed] <a-beast>./<road> {hero.The} took it home, and {hero.his} {sick} [act.ed =v]
        [adverb@v]./Moral: <quest-moral>
    2 | Then the [ruler =sick] of [far =goal] lost {sick.his} {state} {prize}, and promised [number =gold]
        {goal.coin} for it./<road> The {sick} paid {hero.the} {gold} {goal.coin}./Moral: <quest-moral>

road:
    1 | So {hero.the} packed <a-thing>, <a-thing>, <a-thing>, <a-thing> and <some-food>. <events><By-chance>
        {hero.he} [meeting] [temper.a =manner] [animal@manner =helper]. <kindness> "In {goal}, knock
        [few =knocks] times at the [colour =door] door and say '<spell =magic>'" [say.ed] the {helper}.
        <events>In {goal}, on the river {goal.river}, {hero.the} knocked {knocks} times at the {door} door.
        "{magic}" It opened, and there was the {state} {prize}!

By-chance:
    3 | <In-place>
    1 | Near [town]
    2 | At [hour]:[minute]

In-place:
    1 | In the <place>
    1 | By the <place>

kindness:
    3 | {hero.The} had [number =meal] [food.s] and gave {helper.him} [below@meal =share],
        {meal := meal - share}which left {meal}.
    2 | {helper.He} was caught in <a-thing>, and {hero.the} cut {helper.him} free.
    2 | {helper.He} feared the {helper.fear}, so {hero.the} drove it away.

spell:
    1 | [syllable.T] [syllable]<chant>

chant:
    4 | _[syllable]<chant>
    1 | !

quest-moral:
    3 | be kind to {helper.a}, and {helper.a} will be kind to you
    2 | if {helper.a} says knock {knocks} times, knock {knocks} times
    1 | never laugh at {manner.a} {helper}

# A bargain: an offer, a promise, and whether it is kept.
bargain:
    1 | A Bargain in [town =mart]/<intro> On [date] [month] {hero.he} took [number =stock] [look =state]
        [thing@state.s =ware] to {mart}, and asked [number =price] {mart.coin} for each.
        <events>[other@hero =other] the {other.trade} [act.ed =v] [adverb@v]. "[below@price =offer],"
        {other.he} [say.ed]. <haggle>

haggle:
    2 | "Never!" [say.ed] {hero.the}. <events>Moral: ask for {price}, and you may go home with {stock}
        {ware.s}
    4 | "Done!" [say.ed] {hero.the}. {other.The} took [digit =lot], {sum := lot * offer}promised {sum}
        {mart.coin} on [weekday =due], and [move.ed =v] off [adverb@v]. <events><payment>

payment:
    3 | On {due} {other.the} came with all {sum} {mart.coin}, <a-thing> and <a-thing>./Moral: <kept-moral>
    2 | {due} came, but not {other.the}, and {hero.the} never saw the {sum} {mart.coin}./Moral: <broken-moral>

kept-moral:
    2 | a promise kept is worth {sum} {mart.coin}
    1 | trust {other.trade.a}, but count the {mart.coin}

broken-moral:
    2 | never trust {other.trade.a} till {due}
    1 | {offer} {mart.coin} today are better than {sum} on {due}

# A contest: whoever has more has won.
contest:
    1 | The Contest of the [animal.T =hero] and the [rival@hero.T =other]/The {hero.epithet} {hero} and the
        {other.epithet} {other} each said, "I am the best at <skill>." So they asked [temper.a =q]
        [trade@q =judge] to judge. <events>By [hour]:[minute] the {hero} had [number =mine] {game.s}, and the
        {other} had [unlike@mine =yours].
        {winner := hero if mine > yours else other}{loser := other if mine > yours else hero}<events><verdict>

skill:
    2 | counting <games>
    2 | catching <games>
    1 | throwing <games>
    1 | drawing <games>

games:
    1 | [thing.s =game]
    1 | [look =q] [thing@q.s =game]
    1 | [colour =q] [thing@q.s =game]

verdict:
    4 | "{winner.The}!" [say.ed] the {judge}, and gave {winner.him} <a-thing>, <a-thing> and <a-thing>. The
        {loser} went home to {loser.his} {loser.lair}, [act.ing =v] [adverb@v]./Moral: <contest-moral>
    1 | "I was [act.ing]," [say.ed] the {judge}, so only the {loser} knew that the {winner} had won./Moral:
        choose your {judge} with care

contest-moral:
    2 | even {loser.a} cannot win every time
    2 | never count {game.s} with {winner.a}
    1 | better {winner.epithet.a} {winner} than {loser.epithet.a} {loser}

# Something is lost, and the thief is afraid of something.
lost:
    2 | How [person =hero] Lost [thing.aT =lost]/{hero} <hero-is> {hero.He} <trait> <loss>
    1 | The Lost [thing.T =lost]/<intro> <loss>

loss:
    1 | At [hour]:[minute] {hero.his} [look =state] {lost}, a gift from {hero.his} [kin =giver], was gone!
        <events><search> "Have you seen the {state} {lost}?" {hero.he} asked [folk =witness] the
        {witness.trade}. "No," [say.ed] {witness}, "but I saw [temper.a =manner] [animal@manner =thief] run to
        [place.a =hole]." <events><catch>

search:
    1 | {hero.He} looked <looked>

looked:
    2 | <where>, and found <a-thing>. <search>
    1 | everywhere.

catch:
    3 | Now the {thief}, as you know, fears the {thief.fear}. So {hero.the} [say.ed], "The {thief.fear}! The
        {thief.fear}!" The {thief} fled to {thief.his} {thief.lair}, and there lay the {lost}./Moral:
        <lost-moral>
    2 | {hero.The} put some {thief.food} by the {hole}. Out came the {thief}, and {hero.the} took the
        {lost}./Moral: <lost-moral>
    1 | But the {hole} was empty, and {hero.his} {giver} bought [look.a] {lost} for [number]
        {hero.home.coin}./Moral: lock up your {lost} if you live near {thief.a}

lost-moral:
    2 | every {thief} fears something
    1 | who knows {thief.a} can find {lost.a}
    1 | {thief.epithet.a} {thief} cannot keep {lost.a}

# A stranger knocks.
visitor:
    1 | A Knock at the Door/<intro> At [hour]:[minute] one [day-air] [daypart] {hero.he} heard [sound]. It was
        [temper.a =manner] [trade@manner =guest] from [far =goal], [act.ing =v] [adverb@v]. "[folk =miser] the
        {miser.trade} shut me out," [say.ed] the {guest}. <welcome>

welcome:
    3 | {hero.The} served <some-food>, <some-food> and <some-food>. <events>In the morning the {guest} was
        gone, but <where> stood <one-thing> with [number =gold] {goal.coin} in it, and each day there were
        [digit =growth] more: {gold := gold + growth}{gold}{gold := gold + growth}, then
        {gold}{gold := gold + growth}, then {gold}. <envy>/Moral: <guest-moral>
    1 | "Then go away," [say.ed] {hero.the} [adverb]. <events>The {guest} was really the [ruler] of {goal},
        and gave [number] {goal.coin} to {hero.his} [kin]./Moral: open the door to {manner.a} {guest}

envy:
    2 | {miser} heard of it and [act.ed =v] [adverb@v].
    1 | But {miser} never found out.

guest-moral:
    2 | feed {guest.a}, and {guest.a} may feed you
    1 | {manner.a} {guest} may be richer than {miser.trade.a}
    1 | a meal costs less than {gold} {goal.coin}

# An apprentice learns to count and to wait.
lesson:
    1 | The Lesson of the [trade.T =craft]/[fellow@craft =master] the {craft} of {master.home} took an
        apprentice, [other@master =hero], who was [temper] and as [simile =q] as {q.of}. "<sums> <events>"How
        many {craft.ware} can you make in a day?" asked {master}. "[digit =pace]," [say.ed] {hero}. So in
        [number =days] days {hero.he} made {made := pace * days}{made}. <events><hurry>

sums:
    1 | [number =left] <sum> "{sum}." "<more-sums>

sum:
    3 | and [number =right]?"{sum := left + right}
    2 | less [below@left =right]?"{sum := left - right}
    1 | times [digit =right]?"{sum := left * right}

more-sums:
    4 | <sums>
    1 | Good," [say.ed] {master} [adverb], and gave {hero.him} {craft.tool.a}.

hurry:
    2 | But {hero.he} hurried, and [digit =broken] broke./Moral: who makes {pace} in a day may break {broken}
    1 | "Now make [number] more," [say.ed] {master} [adverb]./Moral: {craft.a} is never done

# A box in a box in a box, opened by a charm.
box:
    1 | The [chest.T =outer] in the [place.T =spot]/<intro> {hero.He} found {outer.a} with <a-thing> painted
        on it, and the words: "Say '<spell =magic>'" <events>"{magic}" [say.ed] {hero.the} [adverb]. In the
        {outer} was [jar.a =middle] (and in the {middle} <inmost> <events>Moral: <box-moral>

inmost:
    1 | lay <some-food>). {hero.The} took the {middle} out of the {outer}, and [eat.ed] it [adverb].
    3 | lay [purse.a =inner] (and in the {inner} lay <innermost>

innermost:
    2 | <a-thing>)). {hero.The} took the {inner} out of the {middle} and the {middle} out of the {outer}.
    1 | nothing)). {hero.The} put the {inner} back into the {middle} and the {middle} back into the {outer}.

box-moral:
    2 | not every {outer} holds <a-thing>
    1 | what is in the {middle} is not always in the {outer}
    1 | say "{magic}" and see

# A day at the market, every sum right.
market:
    1 | Market Day in [town =mart]/<intro> On [date] [month] {hero.he} went to {mart}, on the river
        {mart.river}, and sold <a-thing> for [score =purse] {mart.coin} <sales> <events><takings>

sales:
    1 | and <a-thing> for [number =price], {purse := purse + price}making {purse}<more-sales>

more-sales:
    3 | .
    6 | , <sales>

takings:
    3 | Then [temper.a =manner] [animal@manner =thief] took {hero.his} {mart.coin} and ran. "Thief!" [say.ed]
        [folk =helper] the {helper.trade}, and caught {thief.him} <where>. {hero.The} gave {helper.him}
        [digit =price], {purse := purse - price}and took home {purse}./Moral: {thief.a} counts {mart.coin} too
    2 | {hero.The} took home all {purse}, and bought <a-thing>, <a-thing> and <a-thing>./Moral: {purse}
        {mart.coin} are soon spent

# Riddles at a bridge.
riddles:
    1 | The Riddle of the [animal.T =other]/<intro> <events>On the bridge over the {hero.home.river} sat the
        {other.epithet} {other}. "What [riddle =question]?" {other.he} [say.ed] [adverb]. <guess>
        "{question.answer.A}!" <ask>

ask:
    1 | "And what [riddle =question]?" [say.ed] the {other}. <guess> "{question.answer.A}!" <ask>
    4 | "Pass!" [say.ed] the {other}, and gave {hero.him} <a-thing>. <events>Moral: {other.a} thinks of more
        than {other.food}
    1 | Then the {other} saw the {other.fear} and fled. <events>Moral: there is no riddle like the
        {other.fear}

guess:
    2 | {hero.The} thought [adverb].
    5 | "<Perhaps>?" "No!" <guess>

Perhaps:
    1 | [thing.A]
    1 | [animal.A]
    1 | [look.A =q] [thing@q]

# A secret doubles whenever it is told.
secret:
    1 | A Secret in [town =mart]/<intro> One [day-air] [daypart] {hero.he} found [digit =coins] {mart.coin} in
        <a-thing>, and told nobody but [folk =friend] the {friend.trade}. <events>{friend.The} told [folk =p]
        <who> it was {coins := coins + coins}{coins}. <retold>

retold:
    4 | {p.He} told [folk =p] <who> it was {coins := coins + coins}{coins}. <retold>
    1 | {hero.The} heard of it and [act.ed =v] [adverb@v]. <events>Moral: tell {friend}, and soon it is
        {coins}

# Everybody brings a present.
wedding:
    1 | The Wedding of [person =hero] and [other@hero =other]/On [date] [month] {hero} the {hero.trade}
        married {other} the {other.trade} of {other.home}. Their guests and gifts: <gifts> <events>"<remark>,"
        [say.ed] {other} [adverb]. <events>Moral: <wedding-moral>

gifts:
    1 | [folk =p] <who>, <his-thing><more-gifts>

more-gifts:
    5 | ; <gifts>
    1 | . They all ate {hero.dish.s}, {other.dish.s} and <foods>.

wedding-moral:
    1 | {hero.trade.a} needs {other.trade.a}
    1 | love {other.pet.a}, love {other}

# A song that rhymes.
song:
    1 | A Song from [town]/<verse><verse><verse><verse><refrain>

refrain:
    3 | <verse><refrain>
    1 | And that is all, said [folk =p] the {p.trade}

verse:
    3 | I met [temper.a =q] [animal@q] with [rhyme.a =r],/[colour.a] [tool] and [mate@r.a];/
    3 | [folk =p] of {p.home} had [rhyme.a =r],/[number] <things> and [mate@r.a];/
    3 | They [handle.ed] <a-thing> and [rhyme.a =r],/[few] <things> and [look.a] [mate@r];/
    2 | O bring me <a-thing> and [rhyme.a =r],/[food.a], [drink], and [look.a =q] [mate@r];/
    1 | Sing <spell> for the [rhyme =r],/sing <spell> for the [mate@r];/

# A will: who gets what, and how much in all.
will:
    1 | The Will of [person =hero]/I, {hero} the {hero.trade} of {hero.home}, being [temper] and [score] years
        old, leave to my [kin] [number =left] {hero.home.coin}; <legacies> <events>Moral: {left}
        {hero.home.coin} do not buy <a-thing>

legacies:
    3 | to [folk =p] <who> <legacy>; <legacies>
    1 | and to my {hero.pet} my <thing>.

legacy:
    1 | <a-thing>, <a-thing> and [number =right] {hero.home.coin}, {left := left + right}making {left}
    1 | [number] <things>, <a-thing> and <a-thing>

# Soup from a stone, and from what everybody puts in.
soup:
    1 | Soup from [tool.aT =stone]/<intro> [temper.A =manner] [trade@manner =guest] came to {hero.home}. "I
        make soup from {stone.a}," [say.ed] the {guest}, and so they tried it. <events>Into the pot went
        {stone.a}; then {hero.the} put in <some-food><helpings><events>"The {stone} does it," [say.ed] the
        {guest}, and [move.ed =v] off [adverb@v] with [number] {hero.home.coin}./Moral: <soup-moral>

helpings:
    4 | ; [folk =p] <who> put in <some-food> and <some-food><helpings>
    1 | ; and all ate of it./

soup-moral:
    1 | {stone.a} makes good soup if all put something in
    1 | {manner.a} {guest} never goes hungry
"""
