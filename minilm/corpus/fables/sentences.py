"""What may happen in any fable: the sentences, as rules of the grammar. grammar.py explains the notation.

`hero` is known wherever these rules are used. What they remember on the way has a name of one letter: plots that
have something to remember for longer use longer names.
"""

NOTATION = """
# Some of what happens on the way: one event to seven, to the end of the paragraph.
events:
    1 | <event><then-2>

then-2:
    8 | _<event><then-3>
    1 | /

then-3:
    6 | _<event><then-4>
    1 | /

then-4:
    4 | _<event><then-5>
    1 | /

then-5:
    3 | _<event><then-6>
    1 | /

then-6:
    2 | _<event><then-7>
    1 | /

then-7:
    1 | _<event>/
    1 | /

event:
   60 | <He> <did>
    2 | There lay <a-thing> <where><stop>
    1 | There were [few] <things> <where>, all [colour].
    3 | [animal.A =b] <beast-did>
    4 | [temper.A =q] [animal@q =b] <beast-did>
    4 | [folk =p] <who> <folk-did>
    2 | In [town =t] <town-did>
    1 | Nearby, [few] [animal.s =b] were [act.ing =v] [adverb@v].
    3 | Up came [temper.a =q] [trade@q] with <a-thing><stop>
    8 | "<speech>

# Who does it: the hero, by name or by pronoun.
He:
   18 | {hero.He}
    4 | {hero.The}
    2 | Then {hero.he}
    1 | Soon {hero.he}
    1 | Next {hero.he}
    1 | That [daypart] {hero.he}
    1 | On [weekday] {hero.he}
    2 | On [date] [month] {hero.he}
    3 | At [hour]:[minute] {hero.he}

did:
   12 | [move.ed =v] <went>
   10 | [take.ed] <his-thing><taken>
   14 | [handle.ed] <his-thing><handled>
   10 | [make.ed] <his-thing><made>
   10 | [eat.ed] <some-food><ate>
    2 | drank [vessel.a] of [drink]<ate>
    8 | [act.ed =v] [adverb@v]<stop>
    6 | [urge] to <deed>
    5 | [meeting] <someone><met>
    4 | knew that <a-beast> was [act.ing =v] [adverb@v]<stop>
    1 | listened to [sound] from <the-place><stop>
    4 | counted [number] <things> and [number] <foods><stop>
    2 | wrote to {hero.his} [kin], who lived in [town =t]<town-tail>
    1 | put some [herb =h] in the [drink], as it is good for {h.cure}.
    1 | fed {hero.his} {hero.pet} <some-food>.
    5 | [giving] <someone-brief> <a-thing><stop>
    4 | had [number =n] [food.s], <reckoning>

reckoning:
    2 | picked [number =m] more, and {z := n + m}so had {z}.
    2 | ate [below@n =m], and {z := n - m}so had {z} left.

deed:
    2 | [act =v] [adverb@v]<stop>
    3 | [handle] <his-thing><handled>
    3 | [make] <his-thing><made>
    2 | [eat] <some-food><ate>

# Things: most have an adjective, and each adjective has nouns that it likes best.
a-thing:
    9 | <one-thing>
    1 | some <things>
    1 | [pile.a] of <things>

one-thing:
    5 | [thing.a]
    7 | [look.a =q] [thing@q]
    5 | [colour.a =q] [thing@q]
    3 | [hard.a =q] [tool@q]
    2 | [soft.a =q] [cloth@q]
    9 | [size.a] <thing>
    3 | the <thing>
    1 | another <thing>
    2 | one <thing>
    2 | that <thing>

his-thing:
   10 | <a-thing>
    3 | {hero.his} <thing>
    2 | [few] <things>
    4 | [number] <things>

thing:
    3 | [thing]
    3 | [look =q] [thing@q]
    3 | [colour =q] [thing@q]
    2 | [hard =q] [tool@q]
    1 | [soft =q] [cloth@q]

things:
    5 | [thing.s]
    3 | [look =q] [thing@q.s]
    3 | [colour =q] [thing@q.s]
    2 | [hard =q] [tool@q.s]
    1 | [soft =q] [cloth@q.s]

some-food:
    3 | [food.a]
    5 | [taste.a =q] [food@q]
    3 | [few] <foods>
    4 | [number] <foods>
    2 | the <food>
    1 | {hero.his} <food>
    2 | [vessel.a] of <helping>

food:
    1 | [food]
    2 | [taste =q] [food@q]

foods:
    1 | [food.s]
    1 | [taste =q] [food@q.s]

helping:
    2 | [drink]
    3 | <foods>

a-beast:
    1 | [animal.a =b]
    2 | [temper.a =q] [animal@q =b]

# Where.
where:
    1 | [spot] <the-place>

the-place:
    6 | the <place>
    1 | that <place>
    1 | {hero.his} <place>
    1 | [place.a]
    1 | [air.a =q] [place@q]

place:
    4 | [place]
    4 | [air =q] [place@q]
    1 | [trade =t]'s {t.place}

town-tail:
    3 | .
    3 | , on the river {t.river}.
    2 | , where they pay in {t.coin}.

# Other people.
someone:
    4 | [folk =p] <who>
    3 | [temper.a =q] [trade@q]
    2 | [trade.a] from [town]
    1 | {hero.his} [kin]

someone-brief:
    3 | {hero.his} [kin]
    4 | [temper.a =q] [trade@q]
    3 | [folk]

who:
    4 | the {p.trade}
    3 | of {p.home}
    1 | (who loved {p.dish.s})
    1 | with {p.his} {p.pet}

speaker:
    3 | {hero.his} [kin].
    3 | [folk =p] <who>.
    3 | [temper.a =q] [animal@q].

# How a sentence ends, or goes on.
stop:
   30 | .
    3 | , for <sky>.
    3 | , but <sky>.
    5 | , then <did>
    3 | , so {hero.he} <did>
    2 | _while [act.ing =v] [adverb@v].
    4 | _without <a-thing>.
    3 | _under <a-thing>.
    2 | <aside>.

sky:
    7 | the [sky-part =q] <was> [sky-state@q]
    1 | all was [sky-state]

was:
    6 | was
    1 | grew
    1 | looked

aside:
    1 | _(<rumour><close>

close:
    3 | )
    2 | <aside>)

rumour:
    1 | or so they say in [town]
    2 | [folk =p] the {p.trade} told me so
    1 | ask [folk =p] of {p.home}
    2 | and <a-beast> saw it
    3 | and so did [folk]
    3 | and so did <a-beast>
    2 | [number] times

# How each deed goes on.
went:
    5 | <path>
    5 | [adverb@v] <path>

path:
   10 | [path] <the-place><stop>
    2 | as far as [town =t]<town-tail>
    1 | along the river {hero.home.river}<stop>
    2 | with <a-beast><stop>
    1 | home<stop>

taken:
   10 | <stop>
    2 | _and <his-thing><taken>
    5 | _from <someone>.
    2 | _at [town =t]<town-tail>
    2 | _for {hero.his} [kin]<stop>
    3 | _for [number] {hero.home.coin}.

handled:
   10 | <stop>
    2 | _and <his-thing><handled>
    5 | _<where><stop>
    1 | _worth [number] {hero.home.coin}.

made:
    8 | <stop>
    2 | _and <his-thing><made>
    2 | _with [tool.a]<stop>
    2 | _for <someone>.

ate:
    7 | <stop>
    3 | _and <some-food><ate>
    2 | _with [folk =p] <who>.
    2 | _<where><stop>
    1 | _for supper<stop>

met:
    4 | <stop>
    2 | _<where><stop>
    2 | , carrying <a-thing><stop>

beast-did:
    4 | [act.ed =v] [adverb@v]<stop>
    2 | came by, [act.ing =v] [adverb@v]<stop>
    1 | came out of {b.his} {b.lair} to look for {b.food}.
    1 | fears the {b.fear}, as we know.
    4 | stole <a-thing> from <someone>.

folk-did:
    4 | [act.ed =v] [adverb@v]<stop>
    4 | came by with <a-thing><stop>
    1 | was selling {p.trade.ware}<stop>
    1 | lost {p.his} {p.pet}<stop>

town-did:
    1 | people [act.ed =v] [adverb@v]<stop>
    1 | they counted their {t.coin}<stop>

# What people say.
speech:
    3 | <remark>," [say.ed] <speaker>
    2 | <request>!" [say.ed] <speaker>
    2 | <question>?" [say.ed] <speaker>

remark:
    6 | I need <a-thing>
    3 | I saw <a-beast> near the <place>
    2 | I am as [simile =q] as {q.of}
    4 | My [kin] has <a-thing>
    3 | Never trust <a-beast>
    1 | In [town =t] they pay in {t.coin}
    1 | The river at [town =t] is the {t.river}
    1 | [herb.T =h] is good for {h.cure}
    3 | [folk =p] <of-folk>
    4 | [number =n] and [number =m] {z := n + m}make {z}
    1 | [animal.A =b] will do anything for {b.food}

of-folk:
    2 | is [temper]
    1 | says: '<quoted>'

quoted:
    3 | I need <a-thing>
    2 | Never trust <a-beast>
    1 | Ask my [kin]
    1 | [folk =p] says: "I need <a-thing>"

question:
    3 | Where is my <thing>
    2 | Who [take.ed] my <thing>
    2 | Is that <one-thing>
    1 | How far is it to [town]
    2 | Have you seen [folk =p] <who>
    2 | Why did <a-beast> [act]

request:
    3 | Bring me <a-thing>
    2 | Look at <a-beast>
    1 | Do not [act]
    1 | Come and [act]
    1 | Mind the <thing>
"""
