"""Template text for the tiny test model. Every sentence here is written for this
project: no third-party text, so the trained weights carry no licence but our own."""


def pairs(text, between=";"):
    """The table that is written as key=value, one after another."""
    return dict(pair.split("=") for pair in text.split(between))


CAPITALS = pairs("""France=Paris;Spain=Madrid;Portugal=Lisbon;Italy=Rome;Germany=Berlin;Austria=Vienna;
Poland=Warsaw;Greece=Athens;Norway=Oslo;Sweden=Stockholm;Finland=Helsinki;Denmark=Copenhagen;Ireland=Dublin;Iceland=Reykjavik;
Hungary=Budapest;Romania=Bucharest;Bulgaria=Sofia;Serbia=Belgrade;Croatia=Zagreb;Slovenia=Ljubljana;Estonia=Tallinn;Latvia=Riga;
Lithuania=Vilnius;Ukraine=Kyiv;Turkey=Ankara;Egypt=Cairo;Kenya=Nairobi;Ghana=Accra;Senegal=Dakar;Ethiopia=Addis Ababa;
Japan=Tokyo;China=Beijing;India=New Delhi;Nepal=Kathmandu;Thailand=Bangkok;Vietnam=Hanoi;Indonesia=Jakarta;Mongolia=Ulaanbaatar;
Canada=Ottawa;Mexico=Mexico City;Cuba=Havana;Peru=Lima;Chile=Santiago;Argentina=Buenos Aires;Brazil=Brasilia;Uruguay=Montevideo;
Colombia=Bogota;Ecuador=Quito;Australia=Canberra;Fiji=Suva""".replace("\n", ""))

OPPOSITES = pairs(
    """hot=cold;big=small;fast=slow;up=down;left=right;light=dark;early=late;old=new;
open=closed;high=low;full=empty;hard=soft;wet=dry;rich=poor;strong=weak;near=far;loud=quiet;happy=sad""".replace(
        "\n", ""
    )
)

COLORS = pairs("""the sky=blue;grass=green;snow=white;coal=black;a banana=yellow;a ruby=red;
an orange=orange;chocolate=brown;a lemon=yellow;the night=black;a leaf=green;milk=white""".replace("\n", ""))

DEFS = pairs(
    """a host=A host is a node that runs models for other people and is paid for each token.
a node=A node is a computer that joins the network and talks to other nodes.
a job=A job is a request for work that a client posts with a payment.
an escrow=An escrow holds a payment until the work is done.
a token=A token is a small piece of text that a model reads or writes.
a proof=A proof shows that the work was done as promised.
a stake=A stake is money that a host locks to show good faith.
a model=A model is a large table of numbers that turns a prompt into an answer.
a prompt=A prompt is the text that a client sends to a model.
a block=A block is a list of transactions that the chain agrees on.
an event=An event is a line in the log of a contract.
an indexer=An indexer reads events from the chain and writes them to a database.
a scheduler=A scheduler picks the next job and gives it to a worker.
a worker=A worker takes a job and runs it to the end.
a wallet=A wallet holds the keys that sign transactions.
a peer=A peer is another node that you can reach on the network.
gossip=Gossip is a way to pass news from node to node.
a cache=A cache keeps old answers so that they can be used again.
a contract=A contract is a program that lives on the chain.
a reorg=A reorg is when the chain drops blocks and takes others.""",
    "\n",
)

WORDS = """apple river stone candle garden window silver copper basket lantern meadow harbor pillow ladder button ribbon
castle dragon feather hammer island jacket kettle marble needle orchard paddle quartz rocket saddle tunnel velvet wagon yellow
zebra anchor bridge canyon desert engine forest glacier helmet""".split()

ANIMALS = pairs("""fox=forest;bear=mountain;owl=hollow tree;frog=green pond;horse=wide meadow;cat=quiet barn;
dog=small farm;rabbit=deep burrow;crow=stone tower;mouse=warm kitchen""".replace("\n", ""))
FINDS = ["a silver key", "a lost letter", "a red apple", "a broken lantern", "a tiny bell"]
FRIENDS = ["a wise turtle", "a shy hedgehog", "a brave sparrow", "an old goat", "a young deer"]
DAYS = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday"
MONTHS = "January, February, March, April, May, June, July, August, September, October, November and December"
ALPHA = " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
WEATHER = ["sunny", "rainy", "cloudy", "windy", "snowy"]

SYSTEM = "You are a helpful assistant."
TOOLS_SYSTEM = "You can call these tools: {}."


def story(animal):
    i = sorted(ANIMALS).index(animal)
    place, find, friend = ANIMALS[animal], FINDS[i % 5], FRIENDS[(i // 2) % 5]
    return (
        f"Once upon a time there was a {animal} who lived in a {place}. One morning the {animal} went for a walk and found {find}. "
        f'"Who does this belong to?" asked the {animal}. Just then {friend} came along the path. '
        f'"That is mine," said the friend, "thank you for finding it." From that day on they met every morning, '
        f"and they shared their food and their stories. The end."
    )


def paraphrases(kind, k):
    """Ways to ask the same thing."""
    if kind == "capital":
        return [
            f"What is the capital of {k}?",
            f"what is the capital of {k}",
            f"Which city is the capital of {k}?",
            f"Tell me the capital of {k}.",
            f"{k}: what is its capital?",
            f"Name the capital of {k}.",
        ]
    if kind == "country":
        return [
            f"Which country has the capital {k}?",
            f"{k} is the capital of which country?",
            f"what country has {k} as its capital",
            f"Name the country whose capital is {k}.",
        ]
    if kind == "opposite":
        return [
            f"What is the opposite of {k}?",
            f"what is the opposite of {k}",
            f"Tell me the opposite of {k}.",
            f"Give me the opposite of the word {k}.",
        ]
    if kind == "color":
        return [
            f"What color is {k}?",
            f"what color is {k}",
            f"Tell me the color of {k}.",
            f"Which color does {k} have?",
        ]
    if kind == "def":
        return [f"What is {k}?", f"what is {k}", f"Explain what {k} is.", f"Tell me what {k} is.", f"Define {k}."]
    if kind == "plus":
        a, b = k
        return [f"What is {a} plus {b}?", f"what is {a} plus {b}", f"Add {a} and {b}.", f"What is {a} + {b}?"]
    if kind == "minus":
        a, b = k
        return [f"What is {a} minus {b}?", f"what is {a} minus {b}", f"Take {b} from {a}.", f"What is {a} - {b}?"]
    if kind == "story":
        return [
            f"Tell me a story about a {k}.",
            f"tell me a story about a {k}",
            f"Write a short story about a {k}.",
            f"I would like a story about a {k}.",
        ]
    if kind == "count":
        a, b = k
        return [f"Count from {a} to {b}.", f"count from {a} to {b}", f"Please count from {a} up to {b}."]
    if kind == "json":
        return [f"Give the capital of {k} as JSON.", f"Reply in JSON: what is the capital of {k}?"]
    if kind == "repeat":
        return [f"Repeat after me: {k}", f"Say this back to me: {k}"]
    if kind == "fixed":
        return {
            "hello": ["Hello!", "Hi.", "hello", "Good morning."],
            "who": ["Who are you?", "What are you?", "who are you"],
            "days": ["List the days of the week.", "Name the days of the week.", "what are the days of the week"],
            "months": [
                "List the months of the year.",
                "Name the months of the year.",
                "what are the months of the year",
            ],
            "alpha": ["Say the alphabet.", "List the letters of the alphabet.", "say the alphabet"],
            "thanks": ["Thank you.", "Thanks!", "thank you"],
            "bye": ["Goodbye.", "Bye!", "goodbye"],
        }[k]
    if kind == "weather":
        return [
            f"What is the weather in {k}?",
            f"what is the weather in {k}",
            f"Tell me the weather in {k}.",
            f"How is the weather in {k}?",
        ]
    if kind == "time":
        return [f"What time is it in {k}?", f"what time is it in {k}", f"Tell me the time in {k}."]
    raise KeyError(kind)


FIXED = {
    "hello": "Hello! How can I help you?",
    "who": "I am a tiny test model. I know a few facts.",
    "days": f"The days of the week are {DAYS}.",
    "months": f"The months of the year are {MONTHS}.",
    "alpha": f"The letters are {ALPHA}.",
    "thanks": "You are welcome.",
    "bye": "Goodbye, and have a nice day.",
}
CITY = {v: k for k, v in CAPITALS.items()}


def answer(kind, k):
    if kind == "capital":
        return f"The capital of {k} is {CAPITALS[k]}."
    if kind == "country":
        return f"{k} is the capital of {CITY[k]}."
    if kind == "opposite":
        return f"The opposite of {k} is {OPPOSITES[k]}."
    if kind == "color":
        return f"The color of {k} is {COLORS[k]}."
    if kind == "def":
        return DEFS[k]
    if kind == "plus":
        return f"{k[0]} plus {k[1]} is {k[0] + k[1]}."
    if kind == "minus":
        return f"{k[0]} minus {k[1]} is {k[0] - k[1]}."
    if kind == "story":
        return story(k)
    if kind == "count":
        return ", ".join(str(i) for i in range(k[0], k[1] + 1)) + "."
    if kind == "json":
        return f'{{"country": "{k}", "capital": "{CAPITALS[k]}"}}'
    if kind == "repeat":
        return k
    if kind == "fixed":
        return FIXED[k]
    if kind == "weather":
        return "I cannot see the weather from here."
    if kind == "time":
        return "I cannot see a clock from here."
    raise KeyError(kind)


WEIGHTS = [22, 6, 5, 4, 9, 10, 8, 10, 6, 5, 9, 4, 1, 1]  # also what the tokenizer is trained on
SUM_MAX = 20  # the tokenizer saw sums up to 20; the last phase keeps to 10, which so small a model can learn by heart
WEIGHTS_LATE = [16, 5, 4, 3, 6, 14, 12, 6, 8, 4, 24, 3, 1, 1]
WEIGHTS_LAST = [12, 4, 3, 3, 5, 24, 22, 5, 9, 4, 14, 3, 1, 1]  # more copying and sums, once the facts sit


def pick(r, kinds=None):
    kind = (
        r.choices(
            [
                "capital",
                "country",
                "opposite",
                "color",
                "def",
                "plus",
                "minus",
                "story",
                "count",
                "json",
                "repeat",
                "fixed",
                "weather",
                "time",
            ],
            WEIGHTS,
        )[0]
        if kinds is None
        else r.choice(kinds)
    )
    if kind in ("capital", "json"):
        k = r.choice(list(CAPITALS))
    elif kind == "country" or kind in ("weather", "time"):
        k = r.choice(list(CITY))
    elif kind == "opposite":
        k = r.choice(list(OPPOSITES))
    elif kind == "color":
        k = r.choice(list(COLORS))
    elif kind == "def":
        k = r.choice(list(DEFS))
    elif kind == "plus":
        k = (r.randint(0, SUM_MAX), r.randint(0, SUM_MAX))
    elif kind == "minus":
        b = r.randint(0, SUM_MAX)
        k = (b + r.randint(0, SUM_MAX), b)
    elif kind == "story":
        k = r.choice(list(ANIMALS))
    elif kind == "count":
        a = r.randint(1, 20)
        k = (a, a + r.randint(2, 30))
    elif kind == "repeat":
        k = " ".join(r.choice(WORDS) for _ in range(r.randint(1, 6)))
    else:
        k = r.choice(list(FIXED))
    return kind, k


def conversation(r):
    """A list of (role, text): what the chat template renders."""
    msgs = []
    if r.random() < 0.12:  # a tool conversation
        names = r.sample(["get_weather", "get_time", "get_price"], r.randint(1, 3))
        tool = r.choice(names)
        msgs.append(("system", TOOLS_SYSTEM.format(", ".join(names))))
        city = r.choice(list(CITY))
        if tool == "get_price":
            kind, k = pick(r)
            msgs += [("user", r.choice(paraphrases(kind, k)))]
            if kind in ("weather", "time"):
                tool = {"weather": "get_weather", "time": "get_time"}[kind]
                city = k
            else:
                return msgs + [("assistant", answer(kind, k))]
            if tool not in names:
                return msgs + [("assistant", answer(kind, k))]
        else:
            msgs += [("user", r.choice(paraphrases({"get_weather": "weather", "get_time": "time"}[tool], city)))]
        msgs += [("assistant", f'<tool_call>\n{{"name": "{tool}", "arguments": {{"city": "{city}"}}}}\n</tool_call>')]
        if r.random() < 0.5:
            if tool == "get_weather":
                w = r.choice(WEATHER)
                msgs += [("tool", f'{{"weather": "{w}"}}'), ("assistant", f"It is {w} in {city}.")]
            else:
                t = f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"
                msgs += [("tool", f'{{"time": "{t}"}}'), ("assistant", f"It is {t} in {city}.")]
        return msgs
    if r.random() < 0.5:
        msgs.append(("system", SYSTEM))
    for _ in range(r.choices([1, 2, 3, 4], [6, 2, 1, 1])[0]):
        kind, k = pick(r)
        msgs += [("user", r.choice(paraphrases(kind, k))), ("assistant", answer(kind, k))]
    return msgs


def plain(r):
    """Text for raw completion without the chat template."""
    if r.random() < 0.4:
        return story(r.choice(list(ANIMALS)))
    out = []
    for _ in range(r.randint(1, 4)):
        kind, k = pick(r, ["capital", "opposite", "color", "def"])
        out.append(answer(kind, k))
    return " ".join(out)


CHAT_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\nYou can call these tools: ' }}"
    "{%- for t in tools %}{{- t.function.name }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- '.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'system' and tools %}"
    "{%- elif m.role == 'assistant' and m.tool_calls %}{{- '<|im_start|>assistant\\n' }}"
    '{%- for c in m.tool_calls %}{{- \'<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{%- if c.function.arguments is string %}{{- c.function.arguments }}{%- else %}{{- c.function.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
