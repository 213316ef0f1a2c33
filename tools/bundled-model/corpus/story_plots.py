"""The plots of the stories: openings, beats, morals and closings with their alternatives. Data only.

`[a|b]` is a choice; `{N}` is the hero, `{F}` the friend, `{thing}` what the plot turns on; `{he}`, `{his}`, `{him}` follow the
hero's gender, `{f_he}`, `{f_his}`, `{f_him}` the friend's.
"""

from __future__ import annotations

OPENINGS = [
    "Once upon a time, there was {a_kind} [named|called] {N}. {N} lived {place}.",
    "Once upon a time, {a_kind} [named|called] {N} lived {place}.",
    "There once was {a_kind} who lived {place}. {His} name was {N}.",
    "[Long ago|Many years ago|Not long ago], {a_kind} [named|called] {N} lived {place}.",
    "{N} was {a_kind} who lived {place}.",
    "One [morning|day|evening], {a_kind} [named|called] {N} [was out for a walk|was looking out of the window|woke up very early]. {N} lived {place}.",
    "Once there was {a_kind}. {His} name was {N}, and {he} lived {place}.",
]

PLOTS: dict[str, list[str]] = {
    "lost-thing": [
        "{N} had {thing} and [loved it very much|took it everywhere|was very proud of it].",
        "One {weather} [day|morning], {the_thing} was [gone|lost|nowhere to be found]. {N} looked [under the bed and behind the door|in every corner|here and there and everywhere], but {he} could not find it.",
        "[Then|Soon|On the way] {he} met {a_friend} named {F}. [\"Why are you so sad?\" asked {F}.|\"What are you looking for?\" asked {F}.|\"Can I help you?\" asked {F}.]",
        "\"I have lost {thing},\" said {N}. [\"Let us look together,\" said {F}.|\"I will help you,\" said {F}.|\"Two can see more than one,\" said {F}.]",
        "They looked [all day|for a long time|near the water and behind the trees], and at last {F} found {the_thing} [in the tall grass|under a big leaf|behind a stone|in an empty nest].",
        "{N} was so happy that {he} [danced|laughed|hugged {F}|jumped up and down].",
    ],
    "new-friend": [
        "{N} had no friends and [often felt lonely|played alone every day|wished for someone to play with].",
        "One {weather} day, {he} saw {a_friend} [sitting on a stone|standing by the road|playing alone]. [\"Hello,\" said {N}. \"What is your name?\"|\"May I play with you?\" asked {N}.|\"Who are you?\" asked {N} in a small voice.]",
        "\"I am {F},\" said the {friend}. [\"I am new here, and I know nobody.\"|\"I have nobody to play with.\"|\"I would like to have a friend.\"]",
        "So they [played together|shared some {food}|ran up the hill and down again] [until the sun went down|all afternoon|until they were tired].",
        "[In the evening|When it was time to go home], {N} said: [\"Will you come again tomorrow?\"|\"Shall we meet again?\"] [\"Of course,\" said {F}.|\"Yes, every day,\" said {F}.]",
    ],
    "storm": [
        "One night, [a great storm came|it began to rain and did not stop|the wind blew harder than ever before].",
        "{N} [heard somebody call for help|heard a knock at the door|heard a small voice outside]. It was {a_friend} named {F}, [cold and wet|who had lost the way|who had no roof any more].",
        "[\"Come in, come in,\" said {N}.|\"You can stay with me,\" said {N}.|{N} opened the door at once.] {He} gave {F} [a warm blanket|a place near the fire|some hot soup] and [some {food}|a dry coat|a cup of tea].",
        "All night they [told each other stories|listened to the wind|sang songs], and they were not afraid.",
        "In the morning, the sun [came out|was shining] and [everything was quiet|the birds sang|the sky was blue]. \"Thank you,\" said {F}. [\"I will never forget this.\"|\"You have a good heart.\"|\"One day I will help you too.\"]",
    ],
    "learn-skill": [
        "{N} wanted to learn to {skill}, but [it was very hard|{he} did not know how|everyone said that {he} could not do it].",
        "The first time, {he} [fell down|did it all wrong|made a big mess], and [everybody laughed|{he} wanted to cry|{he} was very cross].",
        "{F}, {a_friend}, [came by|watched {him}|saw it]. [\"Try it again,\" said {F}. \"I will show you.\"|\"Do not give up,\" said {F}. \"A little every day is enough.\"|\"I could not do it at first,\" said {F}.]",
        "So {N} tried [again and again|every morning|every day after breakfast], [a little at first, and then a little more|slowly and with patience|until {his} head was spinning].",
        "[After a week|At last|One {weather} day], {he} could {skill}. [Everyone clapped|{F} was very proud|It was a great day].",
    ],
    "garden": [
        "One day in spring, {N} [found a small seed|got a seed from {F}, {a_friend}|put a seed into the earth]. \"I will grow {plant},\" {he} said.",
        "{He} gave it water [every morning|every day|in the morning and in the evening], but [nothing happened|there was only brown earth|no leaf came].",
        "[\"Maybe it is asleep,\" thought {N}.|\"You must wait,\" said {F} the {friend}.|\"Good things need time,\" said {F} the {friend}.] So {N} [waited and waited|did not give up|sang a song for it every night].",
        "[Then one day|After many days|One {weather} morning], [a tiny green leaf came up|there was something green]. It grew and grew, and in summer it was {plant}, [the most beautiful one far and wide|taller than {N}|for everyone to see].",
        "{N} [smiled|was proud] and [gave some seeds to all {his} friends|invited everybody to see {the_plant}|sat beside it until the stars came out].",
    ],
    "share-food": [
        "One {weather} day, {N} had a basket full of {food}. \"[They are all for me|I will eat everything alone|I will not give away even one bite],\" {he} said.",
        "Then {a_friend} named {F} came by. [\"I am so hungry,\" said {F}.|\"That smells good,\" said {F}. \"May I have some?\"|\"I have not eaten all day,\" said {F}.]",
        "{N} [looked at the basket|thought for a while|looked away]. [\"No,\" {he} said at first.|It was not easy for {him}.|{He} did not know what to do.] But then {he} saw [how thin {F} was|how sad {F} looked|that there was enough for two].",
        "\"[Sit down|Come here|Take some],\" said {N}, \"[and eat with me|there is enough for both of us|we will share it].\"",
        "They ate together, and [the {food} tasted better than ever|they talked and laughed|soon the basket was empty]. [The next day, {F} brought something good for {N} too.|From that day on, they always ate together.|{N} had never had such a good meal.]",
    ],
    "fear": [
        "{N} was afraid of {fear}. [{He} told nobody about it.|Every night {he} thought about it.|All the others knew it and laughed.]",
        "One {weather} day, {his} friend {F}, {a_friend}, [was in trouble|did not come home|needed help]. To help {F}, {N} had to be near {fear}.",
        "{N}'s [heart beat fast|legs were shaking|hands were cold], but {he} [took a deep breath|thought of {F}|closed {his} eyes for a moment] and [went on|took one small step, and then another|said to {himself}: you can do this].",
        "[At last {he} found {F}.|Step by step {he} came to {F}.|Then {he} saw {F}.] [\"You came!\" cried {F}.|\"I knew you would come,\" said {F}.|\"You are so brave,\" said {F}.]",
        "[{N} found that it was not so bad after all.|Since that day, {N} has not been so afraid any more.|\"I was afraid,\" said {N}, \"but you are more important.\"]",
    ],
    "race": [
        "One day, {F}, {a_friend}, said: [\"I am the fastest of all!\"|\"Nobody is as fast as I am!\"|\"You are much too slow for me!\"] [\"Let us have a race,\" said {N}.|\"Shall we see?\" asked {N}.]",
        "[Everybody came to watch.|All the neighbours stood by the road.|The race went once around the lake.] [\"One, two, three, go!\" called the owl.|They started when the bell rang.]",
        "{F} was [far ahead|first at once|quick as the wind], but then {f_he} [stopped to rest|fell over a root|stopped to eat some {food}].",
        "{N} [did not stop|ran on and on|went on, step by step]. [But when {he} saw that {F} was hurt, {he} went back to help.|And so {he} came in first.|In the end, both came in at the same time.]",
        "[\"You are a good runner,\" said {F}.|\"Well done,\" said {F}. \"I was too proud.\"|They laughed and shook hands.] [Then they shared some {food}.|After that, they ran together every day.]",
    ],
    "treasure": [
        "One {weather} day, {N} found {thing} [in an old box|on the beach|under a stone|in the grass]. [There was a small note on it.|Something was written on it.] It said: [\"Follow the river.\"|\"Look under the oldest tree.\"|\"Go where the sun goes down.\"]",
        "{N} asked {his} friend {F}, {a_friend}, to come along. [They walked for a whole day.|They went over hills and through a dark wood.|The way was long, but they sang all the time.]",
        "[At last|In the evening|Behind a big rock] they found [a chest|an old wooden door|a little cave]. [It was not easy to open it.|Slowly they opened it.|\"Are you ready?\" asked {F}.]",
        "Inside there was [no gold, but a hundred old books|a heap of coins|a letter and some very old {food}|a picture of two friends]. [\"This is the best treasure of all,\" said {N}.|They looked at each other and laughed.|\"We will share it,\" said {N}.]",
        "[They went home under the stars.|On the way home they told each other everything again.|They were tired and very happy.]",
    ],
    "noise": [
        "One night, {N} heard a strange noise. [Tap, tap, tap!|Bump, bump, bump!|Whoo, whoo!] It came from [the roof|the cellar|behind the door|the garden].",
        "\"Who is there?\" {he} [called|whispered|asked]. Nobody answered. {N} took {thing} and [went to look|opened the door very slowly|went outside on quiet feet].",
        "[There, in the moonlight,|In the dark|Behind a bush] sat {a_friend}. [\"Please do not be angry,\" said the {friend}.|\"I did not want to wake you,\" said the {friend}.] \"My name is {F}. I [cannot sleep|was looking for some {food}|wanted to build a small house].\"",
        "{N} [began to laugh|put {the_thing} down|was not afraid any more]. [\"Is that all?\" {he} said.|\"And I thought you were a ghost!\" {he} said.] \"[Come in and have some {food}|Next time, just knock|I cannot sleep either].\"",
        "They [talked until the sun came up|ate some {food} together|looked at the moon], and [it became a good night|soon both were asleep|they became friends].",
    ],
    "repair": [
        "{N} had {thing}, but one day it [broke|fell down and broke|did not work any more]. [{N} was very sad.|\"Oh no!\" cried {N}.|A big tear ran down {his} face.]",
        "{He} went to {F}, {a_friend} [who could repair everything|who was known for clever hands|at the end of the road]. [\"Can you help me?\" {he} asked.|\"Can it be repaired?\" {he} asked.]",
        "{F} looked at {the_thing} [from all sides|for a long time|with one eye closed]. [\"It will take time,\" {f_he} said, \"and you must help me.\"|\"We can do it together,\" {f_he} said.|\"Hold this, please,\" {f_he} said.]",
        "They worked [all day|until the evening|with glue and string and much patience], and [at last|in the end|when the bell rang] {the_thing} was [as good as new|whole again|even better than before].",
        "\"How can I thank you?\" asked {N}. [\"Bring me some {food} one day,\" said {F}.|\"Come and visit me again,\" said {F}.|\"Help somebody else,\" said {F}.] And {N} did.",
    ],
    "journey": [
        "{N} had never been far from home. [\"I want to see the world,\" {he} said one day.|One {weather} morning, {he} packed some {food} and left.|{He} wanted to see the sea.]",
        "First {he} came to [a wide river|a high mountain|a dark wood]. [There was no bridge.|It was hard to go on.|{He} did not know the way.] There {he} met {a_friend} named {F}, who [showed {him} the way|carried {him} across|went with {him}].",
        "Together they saw [a city with a thousand lights|a lake as blue as the sky|a field of flowers without an end] and [a bridge made of glass|birds of every colour|a tower that touched the clouds].",
        "But [at night|after some days|when the first snow fell], {N} thought of {his} home. [\"I miss my bed,\" {he} said.|\"It is time to go back,\" {he} said.|{He} became very quiet.]",
        "So {he} went home, and {F} came along. [Home was still the best place of all.|Everybody wanted to hear the story.|They had much to tell.]",
    ],
    "kindness": [
        "One {weather} day, {N} saw {a_friend} that was [caught in a net|stuck in the mud|too weak to stand]. [\"Help me, please!\" said the {friend}.|\"Do not be afraid,\" said {N}.]",
        "{N} [helped at once|pulled and pulled|worked until the {friend} was free]. \"Thank you,\" said the {friend}. \"My name is {F}. [One day I will help you too|I will not forget you|If you need me, call me].\" [\"How could you help me?\" thought {N}.|{N} only smiled.]",
        "[Some weeks later|When winter came|One dark night], {N} [fell into a deep hole|lost the way in the snow|was in great danger]. {He} called for help, [but nobody was near|again and again|as loud as {he} could].",
        "But {F} heard it and [came at once|ran as fast as {f_he} could|brought a long rope]. [\"Now it is my turn,\" said {F}.|\"I told you that I would come,\" said {F}.] And soon {N} was safe.",
    ],
    "gift": [
        "It was the birthday of {F}, {a_friend}, and {N} [had no present|had forgotten it|did not have a single coin].",
        "\"What can I give?\" thought {N}. {He} looked [in every drawer|all around the house|in {his} pockets] and found only {thing}. [It was the thing that {he} loved most.|It was old, but {he} liked it very much.]",
        "[{N} thought about it all night.|It was hard to give it away.|First {he} wanted to keep it.] But [in the morning|then] {he} put it into a box with a red ribbon and went to {F}.",
        "{F} opened the box. [\"For me?\" {f_he} asked.|{f_His} eyes became very big.|For a moment {f_he} said nothing.] \"This is the best present of all,\" said {F}.",
        "[Then they ate cake and danced.|They played with it together all day.|{F} gave {N} the biggest piece of cake.] {N} was [happier than before|glad that {he} had come|not sad at all].",
    ],
    "wish": [
        "One night, {N} saw a [falling star|bright star|small light in the sky] and made a wish. \"I wish I [were very big|could fly|had a hundred cakes|could talk to the moon],\" {he} said.",
        "In the morning, the wish [had come true|was real]! At first it was [wonderful|great fun|very exciting]. {N} [laughed and shouted|showed it to everybody|did not think of anything else].",
        "But soon [{he} was all alone|something was wrong|{he} was tired of it]. {F}, {a_friend}, {his} best friend, [did not know {him} any more|could not play with {him}|sat alone by the road].",
        "[\"I do not want this any more,\" said {N}.|That night, {N} looked for the star again.|\"I only want to be as I was,\" said {N}.] [The star heard it.|And the star blinked twice.]",
        "In the morning, everything was as before. {N} ran to {F}, and they [played in the sun|had breakfast with {food}|laughed about it].",
    ],
    "together": [
        "One {weather} day, a big stone lay [on the road|in front of the door|in the middle of the path]. {N} pushed and pulled, but [it did not move|the stone was too heavy|it was no use].",
        "[Then {F}, {a_friend}, came by.|{F}, {a_friend}, saw it and laughed.] [\"You cannot do that alone,\" said {F}.|\"Let me try,\" said {F}.] But {F} could not move it [either|alone either].",
        "\"[What if we push together?|Let us do it at the same time.|One, two, three!]\" said {N}. They pushed [with all their strength|as hard as they could], and the stone moved [a little|just a bit].",
        "Then [more and more neighbours came|a mouse came to help, and it pushed too|they called all their friends], and [with a great crash|at last|slowly, slowly] the stone rolled away.",
        "[\"None of us could do it alone,\" said {F}.|\"Together we are strong,\" said {N}.|Everybody cheered.] [Afterwards they all had some {food}.|That evening they sat together for a long time.]",
    ],
}

MORALS: dict[str, list[str]] = {
    "lost-thing": ["{N} learned that it is good to ask for help.", "{N} knew now that a friend is worth more than any thing."],
    "new-friend": ["{N} was never lonely again.", "{N} learned that one kind word is enough to find a friend."],
    "storm": ["{N} learned that an open door makes friends.", "Since then, {N} and {F} have been friends."],
    "learn-skill": ["{N} learned that you must never give up.", "{N} knew now that practice makes perfect."],
    "garden": ["{N} learned that good things need time.", "{N} knew now that patience is a gift."],
    "share-food": ["{N} learned that sharing makes you happy.", "{N} knew now that everything tastes better with a friend."],
    "fear": ["{N} learned that being brave means to be afraid and to go on.", "{N} was proud of {himself}."],
    "race": ["{N} learned that it is not important who is first.", "They both learned that it is better to be kind than to be fast."],
    "treasure": ["{N} learned that the best treasure is a friend.", "{N} never forgot that day."],
    "noise": ["{N} learned that most noises are not dangerous.", "{N} learned that a stranger can be a friend."],
    "repair": ["{N} learned that broken things can be made whole again.", "{N} learned to take good care of things."],
    "journey": ["{N} learned that the world is big and that home is warm.", "{N} knew now that the way is better with a friend."],
    "kindness": ["{N} learned that no good deed is ever lost.", "{N} learned that even a small friend can be a great help."],
    "gift": ["{N} learned that giving is better than getting.", "{N} knew now that a present from the heart is the best one."],
    "wish": ["{N} learned to be happy with what {he} had.", "{N} never wished for it again."],
    "together": ["{N} learned that together we can do more than alone.", "And so they learned to help each other."],
}

CLOSINGS = [
    "And they lived happily ever after.", "The end.", "And from that day on, they were the best of friends.", "And then everybody went to sleep.", "And if you go there, you can still hear them laugh.",
    "That night, {N} slept very well.", "And {N} smiled all the way home.", "And they never forgot that day.",
]
