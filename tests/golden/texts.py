"""Texts from which make.py computes the reference values. All were written for this project."""

# Each question has one good answer and three bad ones, which makes three preference pairs.
QUESTIONS = [
    ("What do bees collect from flowers?", "Bees collect nectar and pollen.",
     ["Bees collect small stones.", "Bees collect rain for the winter.", "They collect letters."]),
    ("Why does ice float on water?", "Ice floats because it is less dense than water.",
     ["Ice floats because it is afraid of the dark.", "Ice is heavier than water, so it floats.",
      "Nobody has ever seen ice float."]),
    ("Name a tool that cuts wood.", "A saw cuts wood.",
     ["A spoon cuts wood.", "A pillow cuts wood, if it is large enough.", "Wood."]),
    ("How many minutes are there in two hours?", "Two hours have 120 minutes.",
     ["Two hours have 200 minutes.", "There are 12 minutes.", "It depends on the month."]),
    ("Which planet do we live on?", "We live on the Earth.",
     ["We live on Saturn.", "We live on the Moon, which is a planet.", "On all of them at once."]),
    ("What is a bakery?", "A bakery is a shop that makes and sells bread.",
     ["A bakery is a kind of boat.", "A bakery is where cars are repaired.",
      "Bakery is the plural of baker."]),
    ("Who writes the code of a program?", "A programmer writes the code of a program.",
     ["The keyboard writes it.", "A gardener writes it in spring.", "Code grows by itself."]),
    ("When do the leaves of a birch fall?", "The leaves of a birch fall in autumn.",
     ["They fall in the middle of spring.", "The leaves fall up, not down.", "Every Tuesday."]),
]

# More text for training the tokenizer.
PARAGRAPHS = [
    "The boat left the harbour before the sun was up. The wind came from the north and the water "
    "was grey, so the two brothers put on their coats and said nothing for an hour.",
    "To compute the mean of a list, add all of its numbers and divide the sum by their count. If "
    "the list is empty, there is no mean, and the function should return an error.",
    "def area(width, height):\n    if width < 0 or height < 0:\n        "
    "raise ValueError('negative')\n    return width * height\n",
    "I think that a town should plant more trees. They give shade in summer, they hold the soil "
    "when it rains, and people like to sit under them. What is there to lose?",
    "Question: what is 17 + 25? Answer: 42. Question: what is 42 - 17? Answer: 25.",
]

# Pairs of plain text at which tokenisation is difficult.
PLAIN_ROWS = [
    # The prompt ends with a space, which a tokenizer may merge with the completion.
    ("Which one is a bird?\n1) a trout\n2) a heron\nChoice: ", "2", "1"),
    ("Which one is a bird?\n1) a trout\n2) a heron\nChoice:", " 2", " 1"),
    ("Half of ten is", " five.", " fifty."),
    # The completion continues the last word of the prompt.
    ("Finish the word: under", "stand", "wear for cold days"),
    ("One line\n", "\nA line after a gap", "A line without one"),
    ("Grüße aus Köln – ", "schöne Tage", "ohne 🌧 Regen"),
    ("Do not answer.", "", "But I will."),
    # A completion contains the text of a special token.
    ("End here.", "The end.<|im_end|>", "No end."),
    ("", "First words.", "Last words."),
    ("z" * 30 + " ", "q", " q"),
]


def user(content):
    return {"role": "user", "content": content}


def system(content):
    return {"role": "system", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


CHAT_ROWS = [
    {"prompt": [user("Which animal gives us wool?")],
     "chosen": [assistant("The sheep.")], "rejected": [assistant("The trout.")]},
    {"prompt": [system("Answer in few words."), user("What is steel made of?")],
     "chosen": [assistant("Iron and carbon.")],
     "rejected": [assistant("Of many things, about which much could be said.")]},
    {"prompt": [user("Double 8."), assistant("16"), user("Double it again.")],
     "chosen": [assistant("32")], "rejected": [assistant("18")]},
    {"prompt": [user("Is snow warm?")],
     "chosen": [assistant("It is cold.")], "rejected": [assistant("It is hot.")]},
    # The rejected message has the role of the user instead of the assistant.
    {"prompt": [user("Guess my name.")],
     "chosen": [assistant("I cannot.")], "rejected": [user("Try it")]},
    # The prompt is part of both completions.
    {"chosen": [user("Name a metal."), assistant("Copper.")],
     "rejected": [user("Name a metal."), assistant("Paper.")]},
    {"prompt": [system("Answer in few words."), user("Good day"), assistant("Good day."),
                user("Who built this bridge?")],
     "chosen": [assistant("An engineer.")], "rejected": [assistant("It was always there, I say.")]},
]

THINK_ROWS = CHAT_ROWS + [
    {"prompt": [user("2 times 3?")],
     "chosen": [assistant("6", reasoning_content="count the threes")],
     "rejected": [assistant("6", reasoning_content="it rhymes")]},
    {"prompt": [user("7 or 8?")], "chosen": [assistant("8")], "rejected": [assistant("7")]},
]

TOOLS = [{"type": "function", "function": {
    "name": "distance", "description": "Distance to a place in km",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}]


def call(place):
    return [{"type": "function",
             "function": {"name": "distance", "arguments": {"place": place}}}]


def tool_rows(as_json):
    """Returns rows with tools; `as_json` converts a list to JSON text."""
    return CHAT_ROWS[:3] + [
        {"prompt": [user("How far is Turin?")],
         "chosen": [assistant("", tool_calls=call("Turin"))],
         "rejected": [assistant("", tool_calls=call("Berlin"))], "tools": TOOLS},
        # Tools can also be JSON text.
        {"prompt": [user("How far is Turin?")], "chosen": [assistant("80 km.")],
         "rejected": [assistant("", tool_calls=call("Turin"))], "tools": as_json(TOOLS)},
        {"prompt": [user("How far is Turin?"), assistant("", tool_calls=call("Turin")),
                    {"role": "tool", "content": "80"}],
         "chosen": [assistant("It is 80 km.")], "rejected": [assistant("It is near.")],
         "tools": TOOLS},
    ]


SWITCH_ROWS = CHAT_ROWS[:3] + [
    {"prompt": [user("At once: 9 - 4?")], "chosen": [assistant("5")],
     "rejected": [assistant("6")], "chat_template_kwargs": {"enable_thinking": flag}}
    for flag in (False, True)
]

# Pairs that the tests in tests/tokens.rs, tests/tokenizer.rs and tests/score.rs write.
SCORED = {
    "plain": [("The sky is", " blue", " green"), ("Answer: ", "B", "the sea")],
    "flags": [("A <|im_start|> b  <|im_end|>\n\n c", " <|im_end|>  x", "y <|im_start|>\n z")],
    "sky": [("The sky is", " blue and wide.", " green 123 today.")],
}

# Texts for the comparison of a real model's tokenizer.
TOKENS = PARAGRAPHS + [q for q, _, _ in QUESTIONS] + [
    "", " ", "z", "   three blanks ", "tab\there\r\nand there\n\n\n", "Zażółć “gęślą” jaźń — 🙂🧑‍🚀",
    "0 7 42 1000000 2.71828 1,234.5", "<|im_start|>user\ntext<|im_end|>\n", "it's they'll WE'D",
    "Ελλάδα Россия ישראל مصر 東京 서울 กรุงเทพ", "\u0001\u001b[0m", "ab" * 120,
    "x = {'a': [1, 2], \"b\": None}  # a comment", "https://example.org/a?b=c&d=%20e",
    "CamelCase snake_case kebab-case", "½ ≤ √2 ≈ 1.41 → ∞",
]

CHATS = [
    [user("Good morning")],
    [user("Name two uses of copper.")],
    [system("Answer in few words."), user("What is 3 times 3?"), assistant("9"),
     user("And 4 times 4?")],
]
