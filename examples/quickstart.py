"""From a table to predictions over the network, in a dozen lines.

Run it with `python examples/quickstart.py`. It uses the server that is running (`tapster up`), or
starts one for itself.
"""

import polars as pl
from sklearn.datasets import load_wine

import tapster


def main() -> None:
    """Import, train, deploy, predict."""
    wine = load_wine()
    frame = pl.DataFrame(wine.data, schema=list(wine.feature_names))
    frame = frame.with_columns(pl.Series("cultivar", wine.target_names[wine.target].tolist()))

    with tapster.connect() as client:
        data = client.data_add("wine", frame)
        print(f"{data.name}@{data.version}: {data.rows} rows")

        job = client.train("wine", target="cultivar", model="cultivar", time_limit=5)
        model = client.model_of(client.wait(job))
        accuracy = model.metrics["accuracy"]
        print(
            f"{model.model}@{model.version}: {model.lineage['algorithm']}, "
            f"accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
        )

        client.deploy("cultivar")
        for answer in client.predict("cultivar", frame.drop("cultivar").head(3)):
            print(answer["prediction"], answer["probabilities"])


if __name__ == "__main__":
    main()
