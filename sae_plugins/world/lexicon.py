"""The words that `text.py` puts into its sentence templates. Data only, stdlib only.

A value of a `dict[str, list[str]]` below is the set of fillers of the slot `{name}`; fillers may hold
slots themselves. Lists are written as one string, separated by `|`.
"""

from __future__ import annotations


def _list(text: str) -> list[str]:
    """`"a b | c"` -> `["a b", "c"]`; line breaks inside an item become one space."""
    return [" ".join(item.split()) for item in text.split("|")]


MALE = _list(
    "James|Robert|John|Michael|David|William|Richard|Joseph|Thomas|Charles|Daniel|Matthew|Mark|Paul|"
    "Steven|Andrew|Kenneth|George|Kevin|Brian|Edward|Ronald|Jason|Jeffrey|Ryan|Jacob|Eric|Frank|Oscar|"
    "Peter|Victor|Walter|Henry|Arthur|Louis|Oliver|Hugo|Felix|Simon|Martin|Ivan|Omar|Rafael|Diego|Luca|"
    "Quentin|Xavier|Yusuf|Zachary|Ulysses|Ned|Isaac|Kofi|Hassan|Viktor|Zane|Vincent|Ulrich|Quincy|Ian"
)
FEMALE = _list(
    "Mary|Patricia|Jennifer|Linda|Elizabeth|Barbara|Susan|Jessica|Sarah|Karen|Nancy|Lisa|Margaret|"
    "Sandra|Ashley|Emily|Donna|Michelle|Carol|Amanda|Melissa|Deborah|Stephanie|Rebecca|Laura|Helen|"
    "Anna|Olivia|Sofia|Alice|Clara|Julia|Elena|Ingrid|Fatima|Priya|Mei|Nadia|Ruth|Grace|Hannah|Irene|"
    "Queenie|Xenia|Yvonne|Zoe|Ursula|Violet|Vera|Wendy|Zelda|Yolanda|Isabel|Joan|Katherine|Una|Odette"
)
SURNAMES = _list(
    "Smith|Johnson|Williams|Brown|Jones|Garcia|Miller|Davis|Martinez|Lopez|Wilson|Anderson|Taylor|Moore|"
    "Jackson|Lee|Thompson|White|Harris|Clark|Lewis|Robinson|Walker|Young|Allen|King|Wright|Scott|Hill|"
    "Green|Adams|Baker|Nelson|Carter|Mitchell|Roberts|Turner|Phillips|Campbell|Parker|Evans|Edwards|"
    "Collins|Stewart|Morris|Murphy|Cook|Rogers|Reed|Bailey|Bell|Cooper|Ward|Cox|Gray|Watson|Brooks|Wood|"
    "Bennett|Hughes|Price|Foster|Sanders|Ross|Long|Patel|Nguyen|Kim|Chen|Khan|Novak|Rossi|Weber|Fischer|"
    "Quinn|Underwood|Vance|Xu|Yates|Zimmer|Osborne|Ingram|Jordan|Kaplan|Ibarra|Ochoa|Vargas|Zhang|Yang"
)
CITIES = _list(
    "London|Paris|Berlin|Madrid|Rome|Vienna|Prague|Oslo|Dublin|Lisbon|Boston|Chicago|Denver|Seattle|"
    "Houston|Atlanta|Dallas|Toronto|Montreal|Sydney|Melbourne|Tokyo|Osaka|Seoul|Beijing|Delhi|Mumbai|"
    "Cairo|Nairobi|Lagos|Lima|Quito|Havana|Mexico City|New York|San Diego|Portland|Austin|Zurich|Geneva|"
    "Munich|Hamburg|Kyoto|Jakarta|Istanbul|Athens|Warsaw|Utrecht|Valencia|Xiamen|Yokohama|Zagreb"
)
COUNTRIES = _list(
    "France|Germany|Spain|Italy|Japan|China|India|Brazil|Canada|Australia|Egypt|Kenya|Nigeria|Mexico|"
    "Turkey|Poland|Norway|Sweden|Iraq|Iran|Israel|Ukraine|Russia|Pakistan|Indonesia|Peru|Chile|Cuba|"
    "Greece|Ireland|Uganda|Vietnam|Yemen|Zambia|Jordan|Kuwait|Haiti|Libya|Oman|Qatar|Thailand|Uruguay"
)
COLLEGES = _list(
    "the University of {city}|{city} State University|{city} College|the {city} Institute of Technology|"
    "the University of {country}|{surname} College|the {surname} School in {city}"
)

# --- biographies: SAEBench's 28 professions. work: what is done; field: with what; place: where. ---
PROFESSIONS: dict[str, dict[str, list[str]]] = {
    name: {"work": _list(work), "field": _list(field), "place": _list(place)}
    for name, work, field, place in [
        ("accountant", "prepares tax returns for {field}|audits the books of {field}|reviews the annual "
         "statements of {field}|advises {field} on tax planning", "small companies|charities|family firms|"
         "real estate funds|restaurants|public bodies", "a tax firm|an audit office|a finance department"),
        ("architect", "designs {field}|draws plans for {field}|has won awards for {field}|leads the design "
         "of {field}", "museums|public libraries|timber houses|schools and offices|urban housing|bridges",
         "a design studio|a planning bureau|an award winning building practice"),
        ("attorney", "represents clients in {field}|practices law in the area of {field}|handles trials "
         "about {field}|argues appeals on {field}", "criminal defense|family law|patent disputes|contract "
         "litigation|personal injury|bankruptcy", "a law firm|the county court|a legal aid office"),
        ("chiropractor", "treats {field}|adjusts the spine of patients with {field}|uses manual therapy for "
         "{field}", "back pain|neck pain|sports injuries|joint problems|headaches|poor posture",
         "a spine clinic|a wellness center|a chiropractic office"),
        ("comedian", "tells jokes about {field}|performs stand up shows about {field}|writes sketches on "
         "{field}|tours clubs with a funny show about {field}", "family life|dating|politics|airports|"
         "growing up poor|bad jobs", "a comedy club|a late night show|an improv theater"),
        ("composer", "writes music for {field}|composes works for {field}|has scored {field}|arranges pieces "
         "for {field}", "orchestra|string quartet|choir|short films|piano and voice|the opera",
         "the conservatory|a concert hall|a recording studio"),
        ("dentist", "offers {field}|treats patients who need {field}|has long experience with {field}|lectures "
         "on {field}", "dental implants|root canals|crowns and bridges|teeth whitening|oral surgery|braces",
         "a dental practice|an oral health clinic|a tooth care center"),
        ("dietitian", "plans meals for {field}|counsels {field} about food|teaches healthy eating to {field}|"
         "studies the nutrition of {field}", "people with diabetes|athletes|cancer patients|young mothers|"
         "overweight children|older adults", "a nutrition clinic|a hospital kitchen|a food advice service"),
        ("dj", "mixes {field} records|plays {field} sets at festivals|spins {field} until morning|produces "
         "{field} tracks", "house|techno|disco|hip hop|drum and bass|electronic", "a night club|a radio "
         "station|a beach party"),
        ("filmmaker", "directs {field}|shoots and edits {field}|has screened {field} at festivals|produces "
         "{field}", "documentary films|short movies|music videos|independent features|animated shorts",
         "a film collective|a movie studio|a production company"),
        ("interior_designer", "decorates {field}|chooses furniture and colors for {field}|restyles {field}|"
         "plans the lighting of {field}", "hotel lobbies|family homes|kitchens|luxury apartments|cafes",
         "a decor studio|a furniture showroom|a home styling firm"),
        ("journalist", "reports on {field}|covers {field}|writes news stories about {field}|has "
         "investigated {field}", "local politics|crime|foreign affairs|the war|the economy|climate policy",
         "a daily newspaper|a news agency|a weekly magazine"),
        ("model", "poses for {field}|walks the runway for {field}|has appeared on the cover of {field}|is the "
         "face of {field}", "fashion brands|swimwear lines|beauty magazines|perfume campaigns|designer shows",
         "a fashion agency|a casting bureau|the fashion week"),
        ("nurse", "cares for {field}|gives medication to {field}|monitors {field} on the ward|assists "
         "{field} at the bedside", "intensive care patients|newborn babies|elderly patients|cancer patients|"
         "emergency admissions|people after surgery", "a hospital ward|a community clinic|a nursing home"),
        ("painter", "paints {field}|exhibits {field} in galleries|works in oil on {field}|sells canvases "
         "with {field}", "landscapes|portraits|abstract shapes|still lifes|city scenes|murals",
         "an art gallery|a painting studio|an artist residency"),
        ("paralegal", "drafts documents for {field}|files court papers in {field}|does legal research on "
         "{field}|assists lawyers with {field}", "real estate closings|probate matters|immigration cases|"
         "injury claims|divorce cases", "a law office|a legal department|a court registry"),
        ("pastor", "preaches about {field}|leads the congregation in {field}|teaches the bible and {field}|"
         "ministers to families through {field}", "prayer|grace|faith|worship|the gospel|forgiveness",
         "a baptist church|a mission|a parish"),
        ("personal_trainer", "coaches clients in {field}|builds workout programs for {field}|teaches "
         "{field}|motivates people through {field}", "strength training|weight loss|boxing fitness|"
         "kettlebell exercise|marathon running|mobility", "a gym|a fitness studio|a boot camp"),
        ("photographer", "photographs {field}|takes pictures of {field}|publishes images of {field}|shoots "
         "{field} with a film camera", "weddings|wild animals|street life|newborns|mountain landscapes|"
         "concerts", "a photo studio|a picture agency|a camera workshop"),
        ("physician", "diagnoses {field}|practices internal medicine with a focus on {field}|sees patients "
         "with {field}|prescribes treatment for {field}", "heart disease|diabetes|infections|asthma|kidney "
         "disease|high blood pressure", "a medical center|a family practice|a university hospital"),
        ("poet", "writes verse about {field}|has published poems on {field}|reads sonnets about {field}|"
         "edits a journal of poetry on {field}", "memory and loss|rivers|love|exile|the sea|silence",
         "a poetry press|a literary festival|a writers workshop"),
        ("professor", "teaches courses on {field}|publishes research on {field}|holds a chair in {field}|"
         "supervises doctoral students in {field}", "history|economics|molecular biology|linguistics|"
         "mechanical engineering|philosophy", "a university department|a faculty of arts|a research "
         "institute"),
        ("psychologist", "counsels people with {field}|provides therapy for {field}|studies the mind and "
         "{field}|helps couples and families through {field}", "anxiety|depression|trauma|grief|eating "
         "disorders|stress", "a mental health clinic|a counseling center|a school service"),
        ("rapper", "raps about {field}|releases mixtapes on {field}|rhymes about {field}|records hip hop "
         "albums about {field}", "the streets|money|his city block and hers|police violence|fame|hustle",
         "a rap label|a hip hop crew|a record company"),
        ("software_engineer", "writes code for {field}|develops {field}|maintains open source {field}|"
         "debugs and tests {field}", "web applications|databases|compilers|mobile apps|cloud services|"
         "search engines", "a software company|a startup|a technology lab"),
        ("surgeon", "operates on {field}|performs surgery for {field}|repairs {field} in the operating room|"
         "has developed a new procedure for {field}", "knee injuries|heart valves|brain tumors|hip "
         "fractures|hernias|burned skin", "a surgical unit|a trauma center|a transplant hospital"),
        ("teacher", "teaches {field}|plans lessons in {field}|helps pupils with {field}|runs the class for "
         "{field}", "third grade reading|high school math|primary science|spelling|music for children|"
         "english as a second language", "an elementary school|a high school|a kindergarten"),
        ("yoga_teacher", "guides students through {field}|teaches {field}|leads retreats with {field}|"
         "combines {field} and meditation", "hatha flow|breathing practice|sun salutations|gentle yoga|"
         "vinyasa poses|prenatal yoga", "a yoga studio|an ashram|a retreat center"),
    ]
}
BIO_FIXED = _list(
    "{He} works at {place} in {city}.|{He} has worked at {place} since {year}.|{He} joined {place} in {city} "
    "in {year}.|{He} is based at {place}.|Before that {he} spent {count} years at {place} in {country}.|"
    "In {year} {he} opened {place} in {city}."
)
BIO_NEUTRAL = _list(
    "{He} graduated from {college} in {year}.|{He} was born in {city} and grew up in {country}.|"
    "{He} lives in {city} with {his} {spouse} and {count} children.|{He} studied at {college} and later moved "
    "to {city}.|In {his} free time {he} enjoys {hobby} and {hobby}.|{He} speaks {count} languages.|"
    "{His} favorite place is {country}, where {he} travels with {his} {spouse}.|{He} received an award from "
    "{college} in {year}.|{He} has {count} years of experience.|{His} {parent} came from {country}.|"
    "Friends describe {him} as {trait} and {trait}.|{He} earned {his} degree with honors from {college}."
)
HOBBIES = _list(
    "hiking|cooking|reading novels|playing chess|gardening|swimming|cycling|fishing|knitting|dancing|"
    "running|sailing|singing|camping|skiing|watching birds|collecting stamps|playing the violin|yoga|tennis"
)
TRAITS = _list(
    "kind|patient|curious|honest|calm|energetic|careful|friendly|modest|generous|funny|quiet|zealous|"
    "thoughtful|reliable|brave|jolly|upbeat|optimistic|witty|gentle|loyal|nimble|vivid|earnest"
)

# --- reviews: SAEBench's amazon categories (the ones it probes and pairs, and four more) ---
CATEGORIES: dict[str, dict[str, list[str]]] = {
    name: {"product": _list(product), "part": _list(part), "use": _list(use)}
    for name, product, part, use in [
        ("All_Beauty", "shampoo|face cream|lipstick|hair brush|nail polish|sun lotion",
         "scent|texture|color|bottle|formula", "my skin|my dry hair|every morning|sensitive skin"),
        ("Toys_and_Games", "puzzle|board game|doll|toy train|building block set|stuffed bear|card game",
         "pieces|rules|colors|box|wheels", "my grandson|a birthday party|family game night|our toddler"),
        ("Cell_Phones_and_Accessories", "phone case|screen protector|charging cable|car mount|battery pack",
         "fit|buttons|clip|charging speed|plug", "my phone|a new smartphone|calls in the car|travel charging"),
        ("Industrial_and_Scientific", "digital caliper|safety valve|steel bolt set|thermometer probe|"
         "pressure gauge|lab beaker", "thread|calibration|seal|steel|accuracy",
         "our machine shop|the laboratory|a pump repair|measuring parts"),
        ("Musical_Instruments", "guitar|ukulele|drum pedal|keyboard stand|violin bow|microphone",
         "strings|tone|tuning pegs|action|sound", "band practice|my guitar lessons|the stage|recording songs"),
        ("Electronics", "tablet|wireless headset|camera lens|bluetooth speaker|computer monitor|router",
         "screen|battery life|signal|picture|remote", "streaming movies|my home office|watching videos|gaming"),
        ("Office_Products", "stapler|ink cartridge|desk lamp|gel pen|paper shredder|label printer|notebook",
         "ink|paper feed|drawer|tip|binding", "the office|printing invoices|my desk|taking notes"),
        ("Grocery_and_Gourmet_Food", "coffee|green tea|chocolate bar|olive oil|snack mix|hot sauce",
         "taste|flavor|aroma|package|sweetness", "breakfast|my lunch|cooking dinner|a quick snack"),
        ("Pet_Supplies", "dog leash|cat litter|chew toy|bird cage|fish tank filter|puppy bed",
         "fabric|smell|buckle|size|squeaker", "my dog|our two cats|the kitten|an old beagle"),
        ("Books", "novel|cookbook|biography|mystery|history book|memoir|fantasy series",
         "plot|characters|ending|chapters|writing", "a long weekend|my book club|bedtime reading|research"),
        ("CDs_and_Vinyl", "album|vinyl record|live recording|jazz CD|box set|greatest hits disc",
         "vocals|pressing|track list|bass|liner notes", "my turntable|fans of the band|a road trip|old songs"),
        ("Software", "antivirus program|photo editor|tax program|operating system upgrade|spreadsheet "
         "package|language course", "license|installer|interface|update|manual",
         "my laptop|windows|filing taxes|editing pictures"),
    ]
}
REVIEW_GOOD = _list(
    "I love this {product}.|This is the best {product} I have ever bought.|The {part} is {good}.|Works "
    "perfectly for {use}.|{Good} {product}, {good} {part}, and it arrived {early}.|Five stars from me.|I "
    "would buy this {product} again.|It is {good} for {use}.|We use it for {use} and it is {good}.|My "
    "{relative} loves the {product}.|Highly recommended.|I am very happy with the {part}.|The {product} "
    "looks {good} and the {part} feels {good}.|It came {early} and the price was {good}."
)
REVIEW_BAD = _list(
    "I hate this {product}.|This is the worst {product} I have ever bought.|The {part} is {bad}.|It did not "
    "work for {use}.|{Bad} {product}, {bad} {part}, and it arrived {late}.|One star is too much.|I want my "
    "money back for this {product}.|It is {bad} for {use}.|We tried it for {use} and it was {bad}.|My "
    "{relative} returned the {product}.|Do not buy it.|I am very disappointed with the {part}.|The {product} "
    "looks {bad} and the {part} broke after {count} days.|It came {late} and the price was {bad}."
)
REVIEW_NEUTRAL = _list(
    "I bought the {product} in {month} for {use}.|The {product} comes in {color}.|I ordered {count} of "
    "them.|My {relative} asked for one.|It is the second {product} we have owned.|The {part} is {color}.|"
    "I paid {count} dollars for the {product}."
)
GOOD = _list(
    "great|excellent|wonderful|perfect|fantastic|beautiful|amazing|superb|lovely|awesome|very nice|solid"
)
BAD = _list(
    "terrible|awful|horrible|useless|cheap|defective|ugly|broken|flimsy|dreadful|poor|a waste of money"
)

# --- news: ag_news' four topics ---
NEWS: dict[str, dict[str, list[str]]] = {
    "World": {
        "who": _list("The president of {country}|Rebels in {country}|The foreign minister of {country}|"
                     "Police in {city}|The army of {country}|Protesters in {city}|Voters in {country}|"
                     "A court in {city}|The United Nations|Aid workers in {country}"),
        "did": _list("called for peace talks|rejected the ceasefire|accused {country} of an attack|held "
                     "an election|released {number} prisoners|reported {number} deaths after a bombing|"
                     "signed a treaty with {country}|declared an emergency|blamed militants for the violence|"
                     "urged {country} to withdraw its troops"),
        "why": _list("after clashes near the border|as talks with {country} collapsed|before the summit in "
                     "{city}|amid fears of a wider war|following an earthquake|despite a cease fire"),
    },
    "Sports": {
        "who": _list("{city} United|The {city} Tigers|Striker {surname}|Coach {surname}|The {country} "
                     "cricket team|Champion {surname}|Quarterback {surname}|The {city} Giants|{name} "
                     "{surname} of {country}|Pitcher {surname}"),
        "did": _list("won the final {score}|lost {score} at home|scored twice in the second half|set a "
                     "world record|beat {country} by {number} points|reached the semifinals of the cup|hit "
                     "a home run|signed a contract with {city}|took the gold medal|missed the penalty"),
        "why": _list("on Sunday night|in front of {number} fans|after extra time|in the opening game of the "
                     "season|despite a knee injury|to take the lead in the league"),
    },
    "Business": {
        "who": _list("{surname} Corp|{surname} Motors|{city} Bank|Shares of {surname} Inc|The central bank of "
                     "{country}|Oil prices|The airline {surname} Air|Retailer {surname} Stores|Investors in "
                     "{city}|Insurer {surname} Group"),
        "did": _list("reported a profit of {number} million dollars|cut {number} jobs|raised interest "
                     "rates|fell {count} percent|agreed to buy {surname} Group|filed for bankruptcy|posted a "
                     "quarterly loss|rose to a record|forecast lower sales|sold its stake in {surname} Corp"),
        "why": _list("as demand slowed|on strong earnings|after analysts lowered their forecast|in a deal "
                     "with creditors|amid worries about inflation|while the dollar weakened"),
    },
    "Sci/Tech": {
        "who": _list("Researchers at {college}|Scientists in {country}|The chip maker {surname} Systems|A new "
                     "web browser|Software giant {surname} Soft|The space agency|Engineers in {city}|A "
                     "computer virus|The search engine {surname}|Astronomers in {country}"),
        "did": _list("released a new operating system|found a planet around a distant star|launched a "
                     "satellite|patched {number} security holes|unveiled a faster processor|sequenced the "
                     "genome of a fish|tested a robot|infected {number} computers|published a study on "
                     "climate|upgraded its internet service"),
        "why": _list("to protect users from hackers|using a new telescope|for mobile phones|with open "
                     "source code|in the journal of physics|ahead of its rivals on the web"),
    },
}
NEWS_TEMPLATES = _list(
    "{who} {did} - {city} ({agency}) - {who} {did} {why}, officials said on {day}.|{who} {did} {why} - "
    "{agency} - {who} {did}. {who} {did} {why}.|{city} - {who} {did} {why}. Earlier, {who} {did}.|{agency} - "
    "{who} {did} on {day} {why}, the {city} Times reported.|{who} {did}. The news came {why}. On {day} {who} "
    "{did}."
)

# --- stories: general narrative prose ---
STORY: dict[str, list[str]] = {
    "animal": _list("fox|owl|rabbit|zebra|yak|horse|wolf|goat|duck|cat|dog|lion|mouse|tiger|whale|eagle|bear|"
                    "otter|quail|unicorn|vulture|iguana|jaguar|koala|newt|lynx|raven|heron|donkey|panda"),
    "thing": _list("key|lamp|box|map|kite|jar|umbrella|violin|quilt|yarn ball|zither|ring|clock|book|coin|"
                   "letter|basket|ladder|mirror|needle|orange|pencil|rope|stone|vase|wagon|hammer|ink pot"),
    "where": _list("the village|the forest|the river|the old mill|the market|the harbor|the castle|the "
                   "valley|the kitchen|the garden|the island|the yard|the quarry|the zoo|the inn|the "
                   "university|the attic|the bridge|the jungle|the lighthouse|the vineyard"),
    "feeling": TRAITS + _list("sad|happy|tired|hungry|angry|lonely|proud|jealous|nervous|uneasy|quick|vexed"),
    "did": _list("walked to {where}|looked for the {thing}|sat under a {tree}|opened the {thing}|ran back to "
                 "{where}|asked the {animal} for help|carried the {thing} to {where}|dug a hole near "
                 "{where}|sang a song|climbed the {tree}|hid the {thing}|slept until noon|painted the "
                 "{thing}|followed the {animal}|crossed {where} at night|lost the {thing}|waited for the "
                 "rain to stop|told a story about a {animal}|baked bread|counted the stars"),
    "tree": _list("oak|elm|pine|willow|yew|apple tree|maple|birch|juniper|fig tree|cedar|walnut tree"),
    "when": _list("One morning|In the evening|At midnight|Every day|Last winter|Before sunrise|Later|Then|"
                  "Once upon a time|After the storm|In {month}|On {day}|Suddenly|Yesterday|During the war"),
    "says": _list("Where is my {thing}?|I saw a {animal} near {where}.|You must never go to {where}.|Why are "
                  "you so {feeling}?|We need a {thing}.|Give me the {thing}.|It was only a {animal}.|Let us "
                  "go to {where} together.|I am too {feeling} to sleep.|Thank you for the {thing}."),
}
STORY_TEMPLATES = _list(
    "{when} {A} {did}.|{A} was {feeling}.|{when} {A} and {B} {did}.|{A} {did}, but {B} {did}.|\"{says}\" said "
    "{A}.|{B} asked, \"{says}\"|The {animal} {did} and {did}.|{A} gave the {thing} to {B}.|There was a "
    "{feeling} {animal} in {where}.|When {A} {did}, the {animal} {did}.|{B} felt {feeling} because {A} "
    "{did}.|Nobody in {where} had seen a {thing} before.|A {animal} and a {animal} {did}."
)

COMMON: dict[str, list[str]] = {
    "surname": SURNAMES,
    "city": CITIES,
    "country": COUNTRIES,
    "college": COLLEGES,
    "name": [n for pair in zip(MALE, FEMALE, strict=False) for n in pair],
    "hobby": HOBBIES,
    "trait": TRAITS,
    "count": _list("two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty"),
    "number": _list("12|15|20|24|30|40|50|75|100|120|200|250|300|500|1,000|2,000"),
    "score": _list("1-0|2-0|2-1|3-1|3-2|4-3|21-14|27-10|98-91|6-4"),
    "year": [str(year) for year in range(1980, 2024)],
    "month": _list("January|February|March|April|May|June|July|August|September|October|November|December"),
    "day": _list("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "agency": _list("Reuters|AP|AFP|Press Trust|Newswire"),
    "relative": _list("wife|husband|son|daughter|mother|father|brother|sister|uncle|aunt|niece|nephew"),
    "color": _list("red|blue|green|yellow|black|white|orange|purple|violet|gray|pink|brown|indigo|khaki"),
    "good": GOOD,
    "bad": BAD,
    "Good": [word.capitalize() for word in GOOD],
    "Bad": [word.capitalize() for word in BAD],
    "early": _list("early|on time|quickly|well packed|in two days"),
    "late": _list("late|damaged|after a month|in pieces|without a receipt"),
}

# --- parliament: the same slots in five languages; every list of a slot has the same length ---
LANGUAGES = ("en", "fr", "de", "es", "nl")
EUROPARL_TEMPLATES: dict[str, list[str]] = {
    "en": _list("{address} {who} {must} {act} {what} {tail}.|{who} {must} {act} {what} {because}.|{when} "
                "{i_say} that {who} {must} {act} {what}.|{because_first}, {who} {must} {act} {what} {tail}."),
    "fr": _list("{address} {who} {must} {act} {what} {tail}.|{who} {must} {act} {what} {because}.|{when} "
                "{i_say} que {who} {must} {act} {what}.|{because_first}, {who} {must} {act} {what} {tail}."),
    "de": _list("{address} {who} {must} {what} {tail} {act}.|{who} {must} {what} {act}, {because}.|{when} "
                "{i_say}, dass {who} {what} {act} {must}.|{because_first}, {must} {who} {what} {tail} {act}."),
    "es": _list("{address} {who} {must} {act} {what} {tail}.|{who} {must} {act} {what} {because}.|{when} "
                "{i_say} que {who} {must} {act} {what}.|{because_first}, {who} {must} {act} {what} {tail}."),
    "nl": _list("{address} {who} {must} {what} {tail} {act}.|{who} {must} {what} {act}, {because}.|{when} "
                "{i_say} dat {who} {what} {must} {act}.|{because_first}, {must} {who} {what} {tail} {act}."),
}
EUROPARL: dict[str, dict[str, list[str]]] = {
    "en": {
        "address": _list("Mr President,|Madam President,|Commissioner,|Ladies and gentlemen,|Dear colleagues,"),
        "who": _list("the Commission|the Council|this Parliament|the European Union|every Member State|the "
                     "committee|the minister|the rapporteur|our group|the industry|the government|Europe"),
        "must": _list("must|can|should|will|may"),
        "act": _list("support|examine|reject|improve|adopt|finance|protect|change|publish|discuss|strengthen|"
                     "explain"),
        "what": _list("the budget|this report|the directive|the common policy|the rights of workers|the "
                      "internal market|the environment|the new treaty|food safety|the proposal on energy|the "
                      "fisheries agreement|public health|research and education|the rules on transport|"
                      "the reform of agriculture|the fight against crime"),
        "tail": _list("before the end of the year|in all countries|without delay|with our citizens|in the "
                      "next weeks|for the young people|at European level|in a transparent way"),
        "because": _list("because the situation is serious|because time is short|because people expect "
                         "it|because the costs are rising|because our citizens have a right to it"),
        "because_first": _list("Since the situation is serious|Since time is short|Since people expect it|"
                               "Since the costs are rising|Since our citizens have a right to it"),
        "when": _list("Today|Once again|In this debate|As you know"),
        "i_say": _list("I say|I hope|I believe|I repeat|I know"),
    },
    "fr": {
        "address": _list("Monsieur le Président,|Madame la Présidente,|Monsieur le Commissaire,|Mesdames et "
                         "Messieurs,|Chers collègues,"),
        "who": _list("la Commission|le Conseil|ce Parlement|l'Union européenne|chaque État membre|la "
                     "commission compétente|le ministre|le rapporteur|notre groupe|l'industrie|le "
                     "gouvernement|l'Europe"),
        "must": _list("doit|peut|devrait|va|pourra"),
        "act": _list("soutenir|examiner|rejeter|améliorer|adopter|financer|protéger|changer|publier|discuter|"
                     "renforcer|expliquer"),
        "what": _list("le budget|ce rapport|la directive|la politique commune|les droits des travailleurs|le "
                      "marché intérieur|l'environnement|le nouveau traité|la sécurité des aliments|la "
                      "proposition sur l'énergie|l'accord de pêche|la santé publique|la recherche et "
                      "l'éducation|les règles de transport|la réforme de l'agriculture|la lutte contre le "
                      "crime"),
        "tail": _list("avant la fin de l'année|dans tous les pays|sans retard|avec nos citoyens|dans les "
                      "prochaines semaines|pour les jeunes|au niveau européen|de manière transparente"),
        "because": _list("parce que la situation est grave|parce que le temps presse|parce que les gens "
                         "l'attendent|parce que les coûts augmentent|parce que nos citoyens y ont droit"),
        "because_first": _list("Comme la situation est grave|Comme le temps presse|Comme les gens "
                               "l'attendent|Comme les coûts augmentent|Comme nos citoyens y ont droit"),
        "when": _list("Aujourd'hui|Une fois de plus|Dans ce débat|Comme vous le savez"),
        "i_say": _list("je dis|j'espère|je crois|je répète|je sais"),
    },
    "de": {
        "address": _list("Herr Präsident,|Frau Präsidentin,|Herr Kommissar,|Meine Damen und Herren,|Liebe "
                         "Kollegen,"),
        "who": _list("die Kommission|der Rat|dieses Parlament|die Europäische Union|jeder Mitgliedstaat|der "
                     "Ausschuss|der Minister|der Berichterstatter|unsere Fraktion|die Industrie|die "
                     "Regierung|Europa"),
        "must": _list("muss|kann|sollte|wird|darf"),
        "act": _list("unterstützen|prüfen|ablehnen|verbessern|annehmen|finanzieren|schützen|ändern|"
                     "veröffentlichen|erörtern|stärken|erklären"),
        "what": _list("den Haushalt|diesen Bericht|die Richtlinie|die gemeinsame Politik|die Rechte der "
                      "Arbeitnehmer|den Binnenmarkt|die Umwelt|den neuen Vertrag|die Sicherheit der "
                      "Lebensmittel|den Vorschlag zur Energie|das Abkommen über die Fischerei|die "
                      "öffentliche Gesundheit|Forschung und Bildung|die Regeln für den Verkehr|die Reform "
                      "der Landwirtschaft|den Kampf gegen das Verbrechen"),
        "tail": _list("vor dem Ende des Jahres|in allen Ländern|ohne Verzug|mit unseren Bürgern|in den "
                      "nächsten Wochen|für die jungen Menschen|auf europäischer Ebene|in offener Weise"),
        "because": _list("weil die Lage ernst ist|weil die Zeit drängt|weil die Menschen es erwarten|weil die "
                         "Kosten steigen|weil unsere Bürger ein Recht darauf haben"),
        "because_first": _list("Da die Lage ernst ist|Da die Zeit drängt|Da die Menschen es erwarten|Da die "
                               "Kosten steigen|Da unsere Bürger ein Recht darauf haben"),
        "when": _list("Heute|Noch einmal|In dieser Aussprache|Wie Sie wissen,"),
        "i_say": _list("sage ich|hoffe ich|glaube ich|wiederhole ich|weiß ich"),
    },
    "es": {
        "address": _list("Señor Presidente,|Señora Presidenta,|Señor Comisario,|Señorías,|Queridos colegas,"),
        "who": _list("la Comisión|el Consejo|este Parlamento|la Unión Europea|cada Estado miembro|la comisión "
                     "competente|el ministro|el ponente|nuestro grupo|la industria|el gobierno|Europa"),
        "must": _list("debe|puede|debería|va a|podrá"),
        "act": _list("apoyar|examinar|rechazar|mejorar|aprobar|financiar|proteger|cambiar|publicar|debatir|"
                     "reforzar|explicar"),
        "what": _list("el presupuesto|este informe|la directiva|la política común|los derechos de los "
                      "trabajadores|el mercado interior|el medio ambiente|el nuevo tratado|la seguridad de los "
                      "alimentos|la propuesta sobre energía|el acuerdo de pesca|la salud pública|la "
                      "investigación y la educación|las normas de transporte|la reforma de la agricultura|"
                      "la lucha contra el crimen"),
        "tail": _list("antes de fin de año|en todos los países|sin demora|con nuestros ciudadanos|en las "
                      "próximas semanas|para los jóvenes|a escala europea|de forma transparente"),
        "because": _list("porque la situación es grave|porque el tiempo apremia|porque la gente lo "
                         "espera|porque los costes aumentan|porque nuestros ciudadanos tienen derecho a ello"),
        "because_first": _list("Como la situación es grave|Como el tiempo apremia|Como la gente lo espera|"
                               "Como los costes aumentan|Como nuestros ciudadanos tienen derecho a ello"),
        "when": _list("Hoy|Una vez más|En este debate|Como ustedes saben,"),
        "i_say": _list("digo|espero|creo|repito|sé"),
    },
    "nl": {
        "address": _list("Mijnheer de Voorzitter,|Mevrouw de Voorzitter,|Mijnheer de commissaris,|Dames en "
                         "heren,|Beste collega's,"),
        "who": _list("de Commissie|de Raad|dit Parlement|de Europese Unie|elke lidstaat|de bevoegde "
                     "commissie|de minister|de rapporteur|onze fractie|de industrie|de regering|Europa"),
        "must": _list("moet|kan|zou|zal|mag"),
        "act": _list("steunen|onderzoeken|verwerpen|verbeteren|goedkeuren|financieren|beschermen|wijzigen|"
                     "bekendmaken|bespreken|versterken|uitleggen"),
        "what": _list("de begroting|dit verslag|de richtlijn|het gemeenschappelijk beleid|de rechten van de "
                      "werknemers|de interne markt|het milieu|het nieuwe verdrag|de veiligheid van "
                      "voedsel|het voorstel over energie|de overeenkomst over de visserij|de "
                      "volksgezondheid|onderzoek en onderwijs|de regels voor het vervoer|de hervorming van de "
                      "landbouw|de strijd tegen de misdaad"),
        "tail": _list("voor het einde van het jaar|in alle landen|zonder uitstel|met onze burgers|in de "
                      "komende weken|voor de jongeren|op Europees niveau|op een open manier"),
        "because": _list("omdat de toestand ernstig is|omdat de tijd dringt|omdat de mensen het "
                         "verwachten|omdat de kosten stijgen|omdat onze burgers er recht op hebben"),
        "because_first": _list("Daar de toestand ernstig is|Daar de tijd dringt|Daar de mensen het verwachten|"
                               "Daar de kosten stijgen|Daar onze burgers er recht op hebben"),
        "when": _list("Vandaag|Nogmaals|In dit debat|Zoals u weet"),
        "i_say": _list("zeg ik|hoop ik|geloof ik|herhaal ik|weet ik"),
    },
}

# --- code: github-code's five languages that SAEBench probes ---
CODE_SLOTS: dict[str, list[str]] = {
    "verb": _list("get|set|load|read|write|find|count|parse|build|check|update|remove|send|print|add|init"),
    "noun": _list("user|item|file|node|list|buffer|page|value|token|index|order|image|key|query|image|event|"
                  "message|record|matrix|queue|table|vector|widget|object|account|session|zone|job"),
    "Noun": _list("User|Item|File|Node|List|Buffer|Page|Value|Token|Index|Order|Image|Key|Query|Event|Message|"
                  "Record|Matrix|Queue|Table|Vector|Widget|Account|Session|Zone|Job"),
    "var": _list("i|n|x|y|data|result|total|size|name|text|path|tmp|out|left|right|width|height|offset|flag"),
    "int": _list("0|1|2|3|4|5|8|10|16|32|64|100|128|255|256|512|1024"),
    "op": _list("+|-|*"),
    "cmp": _list("<|>|==|<=|>=|!="),
    "word": STORY["thing"] + COMMON["color"] + HOBBIES,
    "comment": _list("{verb} the {noun} {var}|returns the {noun} of the {noun}|todo: {verb} every {noun}|the "
                     "{noun} must not be empty|{verb} {noun} and {noun}|number of {noun}s|see {surname} {year}"),
}
CODE: dict[str, dict[str, list[str]]] = {
    "C": {
        "head": ["/*\n * {comment}.\n * Copyright (c) {year} {name} {surname}\n */\n#include <stdio.h>\n"
                 "#include <stdlib.h>\n#include \"{noun}.h\"\n\n#define MAX_{NOUN} {int}\n"],
        "body": [
            "static int {verb}_{noun}(struct {noun} *{var}, int n)\n{{\n    int i;\n    for (i = 0; i < n; i++) "
            "{{\n        if ({var}[i].{noun} {cmp} {int})\n            return {int};\n    }}\n    return 0;\n}}\n",
            "/* {comment} */\nvoid {verb}_{noun}(char *{var})\n{{\n    char *p = malloc({int});\n    if (p == "
            "NULL) {{\n        fprintf(stderr, \"{word}\\n\");\n        exit(1);\n    }}\n    free(p);\n}}\n",
            "typedef struct {noun} {{\n    int {var};\n    char *{noun};\n    struct {noun} *next;\n}} "
            "{noun}_t;\n",
            "int main(int argc, char **argv)\n{{\n    int {var} = {int};\n    printf(\"{word} %d\\n\", {var});\n"
            "    {verb}_{noun}(&{var}, {int});\n    return 0;\n}}\n",
            "unsigned int {noun}_{verb}(unsigned int {var})\n{{\n    while ({var} {cmp} {int})\n        {var} = "
            "{var} {op} {int};\n    return {var} {op} MAX_{NOUN};\n}}\n",
        ],
    },
    "Python": {
        "head": ["#!/usr/bin/env python\n# {comment}\n# Author: {name} {surname}, {year}\nimport os\nimport "
                 "sys\nfrom {noun} import {Noun}\n\n{NOUN} = {int}\n"],
        "body": [
            "def {verb}_{noun}({var}, {noun}=None):\n    \"\"\"{comment}.\"\"\"\n    for item in {var}:\n        "
            "if item {cmp} {int}:\n            return item {op} {int}\n    return None\n",
            "class {Noun}(object):\n    def __init__(self, {var}):\n        self.{var} = {var}\n        self."
            "{noun} = []\n\n    def {verb}(self):\n        # {comment}\n        self.{noun}.append({int})\n"
            "        return len(self.{noun}) {cmp} {int}\n",
            "def main():\n    {noun} = {Noun}({int})\n    with open('{word}.txt') as f:\n        {var} = "
            "f.read()\n    print('{word}', {var})\n\n\nif __name__ == '__main__':\n    main()\n",
            "try:\n    {var} = [x {op} {int} for x in range({int}) if x {cmp} {int}]\nexcept ValueError as e:\n"
            "    raise {Noun}Error('{word}: %s' % e)\n",
            "def test_{verb}_{noun}():\n    {var} = {verb}_{noun}({int})\n    assert {var} {cmp} {int}, '{word}'\n",
        ],
    },
    "HTML": {
        "head": ["<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{Noun} of {name} "
                 "{surname}</title>\n<!-- {comment} -->\n<link rel=\"stylesheet\" href=\"css/{noun}.css\">\n"
                 "</head>\n<body>\n"],
        "body": [
            "<div class=\"{noun}\" id=\"{var}\">\n  <h2>{Noun} {Noun}</h2>\n  <p>The {color} {word} costs {int} "
            "dollars in {city}.</p>\n</div>\n",
            "<ul class=\"{noun}-list\">\n  <li><a href=\"{noun}.html\">{word}</a></li>\n  <li><a href=\"/{verb}/"
            "{noun}\">{word}</a></li>\n</ul>\n",
            "<table width=\"{int}\" border=\"{int}\">\n  <tr><td>{word}</td><td>{int}</td></tr>\n  <tr><td>{word}"
            "</td><td>{int}</td></tr>\n</table>\n",
            "<form action=\"{verb}\" method=\"post\">\n  <input type=\"text\" name=\"{noun}\" value=\"{word}\">\n"
            "  <button type=\"submit\">{verb} {noun}</button>\n</form>\n",
            "<img src=\"img/{noun}.png\" alt=\"{word}\" width=\"{int}\" height=\"{int}\">\n<!-- {comment} -->\n"
            "<script src=\"js/{noun}.js\"></script>\n",
        ],
    },
    "Java": {
        "head": ["/**\n * {comment}.\n * @author {name} {surname}\n */\npackage com.{noun}.{noun};\n\nimport "
                 "java.util.List;\nimport java.util.ArrayList;\n\npublic class {Noun}{Noun} {{\n"],
        "body": [
            "    private final List<{Noun}> {noun} = new ArrayList<{Noun}>();\n\n    public int {verb}{Noun}"
            "(int {var}) {{\n        return {var} {op} {int};\n    }}\n",
            "    // {comment}\n    public static void main(String[] args) {{\n        {Noun} {noun} = new {Noun}"
            "({int});\n        System.out.println(\"{word}\" + {noun});\n    }}\n",
            "    @Override\n    public boolean {verb}{Noun}({Noun} {var}) throws {Noun}Exception {{\n        if "
            "({var} == null) {{\n            throw new {Noun}Exception(\"{word}\");\n        }}\n        return "
            "{var}.{verb}() {cmp} {int};\n    }}\n",
            "    public String get{Noun}() {{\n        StringBuilder sb = new StringBuilder();\n        for (int "
            "i = 0; i < {int}; i++) {{\n            sb.append(\"{word}\");\n        }}\n        return "
            "sb.toString();\n    }}\n",
            "    protected void set{Noun}(final {Noun} {noun}) {{\n        this.{noun} = {noun};\n        this."
            "{var} = {int};\n    }}\n",
        ],
    },
    "PHP": {
        "head": ["<?php\n/**\n * {comment}\n * @package {Noun}\n * @author {name} {surname}\n */\nnamespace "
                 "App\\{Noun};\n\nrequire_once '{noun}.php';\n\n"],
        "body": [
            "function {verb}_{noun}(${var}, ${noun} = array()) {{\n    foreach (${noun} as $key => $value) {{\n"
            "        if ($value {cmp} {int}) {{\n            return ${var} {op} {int};\n        }}\n    }}\n    "
            "return false;\n}}\n",
            "class {Noun} extends Base{Noun} {{\n    protected ${noun} = '{word}';\n\n    public function {verb}"
            "{Noun}(${var}) {{\n        $this->{noun} = ${var};\n        return $this;\n    }}\n}}\n",
            "// {comment}\nif (isset($_GET['{noun}'])) {{\n    echo '<p>{word} ' . $_GET['{noun}'] . '</p>';\n}} "
            "else {{\n    header('Location: {noun}.php');\n}}\n",
            "${noun} = mysql_query(\"SELECT * FROM {noun} WHERE {var} {cmp} {int}\");\nwhile ($row = "
            "mysql_fetch_array(${noun})) {{\n    echo $row['{var}'];\n}}\n",
            "/* {comment} */\n${var} = array('{word}' => {int}, '{word}' => {int});\necho count(${var});\n",
        ],
    },
}
CODE_SLOTS["NOUN"] = [noun.upper() for noun in CODE_SLOTS["noun"]]

# Words that begin with the letters that English text uses least, so that each has enough of them.
RARE_WORDS = (
    "jab jacket jade jaguar jail jam jar jasmine jaw jazz jealous jeans jeep jelly jersey jest jet jewel jig job "
    "jockey jog join joint joke jolly jolt journal journey joy judge jug juggle juice jump junction june jungle "
    "junior juniper junk jury just justice kale karate kayak keen keep kennel kernel kettle key keyboard khaki "
    "kick kid kidney kilo kimono kind king kiosk kiss kit kitchen kite kitten kiwi knack knead knee kneel knife "
    "knight knit knob knock knot know koala quack quad quail quaint quake quality quantity quarrel quarry quart "
    "quarter quartz quasi queen queer quell query quest question queue quick quiet quill quilt quinoa quirk quit "
    "quite quiver quiz quota quote quotient vaccine vacuum vague vain valid valley value valve van vanilla vanish "
    "vapor variable variety vase vast vault vector vegetable vehicle veil vein velvet vendor venom vent venture "
    "verb verify verse version vessel vest veto via vibrant vice victim victory video view vigor villa village "
    "vine vinegar violet violin virtual virus visa visit visual vital vivid vocal voice void volcano volume vote "
    "vowel voyage vulture udder ugly ulcer ultimate ultra umbrella umpire unable unary uncle under undo uneasy "
    "unhappy unicorn uniform union unique unit unite unity universe unless unlock until unusual update upgrade "
    "upload upon upper upright upset urban urge urgent urine usage use useful user usher usual utensil utility "
    "utter utopia xenon xerox xylem xylophone xebec xenial xeric xylose xml xor xray xmas xpath xanthan xystus "
    "yacht yak yam yard yarn yawn yeah year yearn yeast yell yellow yelp yes yesterday yet yeti yew yield yodel yoga "
    "yogurt yoke yolk yonder young your youth yule yummy zany zap zeal zebra zen zenith zephyr zero zest zigzag zinc "
    "zip zipper zither zodiac zombie zone zoo zoom zucchini ice icicle icing icon idea ideal idle idol igloo ignite "
    "iguana ill image impact inch income index indigo infant ink inn input insect inside instant iris iron island "
    "issue itch item ivory ivy oak oar oasis oat obey object oblong ocean octave octopus odd odor offer office "
    "olive omit onion open opera opinion optic orange orbit orchard orchid order organ origin otter ounce outer "
    "oval oven over owl owner oxen oxygen oyster ozone nail naive naked name napkin narrow nasal nation nature naval "
    "navy near neat neck nectar needle neglect nerve nest neutral never news next nice night nimble noble nod noise "
    "noon normal north nose notch note noun novel nudge nurse nut nylon wagon waist wait walk wall walnut wander "
    "warm wasp waste water wave wax weak wealth weapon weather weave wedding weed week weigh welcome west whale "
    "wheat wheel whip whisper whistle wide widow width wife wild willow wind window wing winter wire wise wish wolf "
    "wonder wood wool word world worm worry wreck wrist yoyo yank yaw yearly zoology zonal zeta zinnia"
).split()
