"""Tables of made-up parts, as text: rows that differ in few characters, which cannot be guessed."""

import random

NAMES = "axle bolt bracket bush cable clamp cog cover dial disc flange gasket hinge hose lever nut pin pump ring rod"
COLOURS = "amber black blue brown green grey red silver white yellow"


def table(seed: object, n_rows: int = 60) -> str:
    """Comma-separated values with a line of headings; the seed says which."""
    rng = random.Random(f"table {seed}")
    rows = [
        f"{rng.choice(NAMES.split())}-{rng.randrange(100, 1000)},{rng.choice(COLOURS.split())},"
        f"{rng.randrange(1, 500)},{rng.randrange(100, 10000) / 100:.2f}"
        for _ in range(n_rows)
    ]
    return "\n".join(["part,colour,stock,price", *rows])


def tables() -> list[str]:
    return [table(i) for i in range(12)]
