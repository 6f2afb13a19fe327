"""Train several algorithms on the same data, compare them, serve the best by an alias.

Run it with `python examples/compare_models.py`. Whoever calls the endpoint need not know which
version is behind it: moving the alias moves the traffic.
"""

import polars as pl
from sklearn.datasets import load_diabetes

import tapster

ALGORITHMS = ("ridge", "random-forest", "hist-gradient-boosting")


def main() -> None:
    """One training job an algorithm, all at once; then a look at the held-out errors."""
    found = load_diabetes()
    frame = pl.DataFrame(found.data, schema=list(found.feature_names))
    frame = frame.with_columns(progression=found.target)

    with tapster.connect() as client:
        client.data_add("diabetes", frame)
        jobs = [
            client.train("diabetes", "progression", "progression", algorithm=name, seed=7)
            for name in ALGORITHMS
        ]
        versions = [client.model_of(client.wait(job)) for job in jobs]
        versions.sort(key=lambda version: version.metrics["rmse"]["value"])
        for version in versions:
            error = version.metrics["rmse"]
            print(
                f"{version.model}@{version.version} {version.lineage['algorithm']:<24} "
                f"RMSE {error['value']:6.2f} ({error['low']:.2f} to {error['high']:.2f})"
            )

        best = f"progression@{versions[0].version}"
        client.models_alias(best, "champion")
        client.deploy("progression:champion", "progression")
        rows = frame.drop("progression").head(2)
        print([answer["prediction"] for answer in client.predict("progression", rows)])


if __name__ == "__main__":
    main()
