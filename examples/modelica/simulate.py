"""Compile and simulate one Modelica model, and write its variables over time to <stem>_res.csv.

Models that it uses are found in the files beside it. A model that cannot be compiled or simulated ends with status 1
and the compiler's own sentence on stderr.
"""

import argparse
import csv
import sys
from pathlib import Path

import rumoca


def main() -> None:
    """Simulate from 0 to --stop seconds."""
    parser = argparse.ArgumentParser(description="Simulate a Modelica model.")
    parser.add_argument("model", type=Path, metavar="MODEL.mo")
    parser.add_argument("--stop", type=float, default=2.0, metavar="SECONDS")
    args = parser.parse_args()
    try:
        result = rumoca.Session().load(args.model).simulate(t=(0.0, args.stop))
    except rumoca.RumocaError as error:
        sys.exit(f"error: {error}")
    with open(f"{args.model.stem}_res.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time", *result.names])
        rows.writerows(zip(result.time, *(result[name] for name in result.names), strict=True))
    print(f"{result.model}: {len(result.time)} points of {', '.join(result.names)}")


if __name__ == "__main__":
    main()
