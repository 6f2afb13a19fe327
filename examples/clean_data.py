"""Clean a messy table by a recipe, split it, and train on exactly those rows.

Run it with `python examples/clean_data.py`. The recipe and the split are recorded: the model's
lineage says which version of the data it has seen, and how that came to be.
"""

import random

import polars as pl

import tapster


def messy(rows: int = 400) -> pl.DataFrame:
    """House prices with spelling variants, gaps, a typing error and rows entered twice."""
    draw = random.Random(0)
    size = [draw.uniform(40, 200) for _ in range(rows)]
    town = [draw.choice(["Ghent", " ghent", "Bruges", "BRUGES "]) for _ in range(rows)]
    price = [
        1500 * area + (60_000 if "ru" in name.lower() else 0) + draw.gauss(0, 9_000)
        for area, name in zip(size, town, strict=True)
    ]
    gaps = [area if draw.random() > 0.05 else None for area in size]
    gaps[0] = 90_000.0
    frame = pl.DataFrame({"area": gaps, "town": town, "price": price})
    return pl.concat([frame, frame.head(10)])


RECIPE = {
    "steps": [
        {"op": "drop_duplicates"},
        {"op": "normalise_text", "columns": ["town"]},
        {"op": "drop_outliers", "columns": ["area"]},
    ]
}


def main() -> None:
    """Import, look, clean, split, train."""
    with tapster.connect() as client:
        raw = client.data_add("houses", messy())
        for warning in client.data_profile("houses")["warnings"]:
            print("warning:", warning["message"])
        clean = client.data_clean(f"houses@{raw.version}", RECIPE)
        print(f"{raw.rows} rows became {clean.rows}")

        ref = f"houses@{clean.version}"
        split = client.data_split(ref, "by-chance", fractions=[0.8, 0.0, 0.2], seed=1)
        print(f"{split.rows[0]} rows to train on, {split.rows[2]} to test on")
        job = client.train(ref, "price", "house-price", algorithm="ridge", split="by-chance")
        model = client.model_of(client.wait(job))
        print(f"R2 {model.metrics['r2']['value']:.3f}")
        parent = client.data_lineage(ref)["parents"][0]
        print(f"{ref} was made from {parent['dataset']}@{parent['version']} by the recipe")


if __name__ == "__main__":
    main()
