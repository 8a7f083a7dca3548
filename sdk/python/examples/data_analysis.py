"""Analyses data in a sandbox, and saves the plot that comes of it."""

from __future__ import annotations

from pathlib import Path

from cloud_sandbox import Sandbox

DATA = "year,rain\n" + "".join(f"{year},{500 + (year * 37) % 200}\n" for year in range(1990, 2020))

READ = """
import csv, statistics
rows = list(csv.DictReader(open("/workspace/rain.csv")))
rain = [int(row["rain"]) for row in rows]
statistics.mean(rain)
"""

# `rain` is there: code runs in one interpreter
PLOT = """
import matplotlib.pyplot as plt
plt.plot([int(row["year"]) for row in rows], rain)
plt.title("rain, mm a year")
plt.show()
"""


def main() -> None:
    """Prints the mean and writes `rain.png` into the current folder."""
    with Sandbox.create() as sandbox:
        sandbox.write_file("/workspace/rain.csv", DATA)
        print("mean:", sandbox.run_code(READ, check=True).text)
        execution = sandbox.run_code(PLOT, check=True)
        plot = next(result.png for result in execution.results if result.png is not None)
        Path("rain.png").write_bytes(plot)
        print(f"rain.png: {len(plot)} bytes")


if __name__ == "__main__":
    main()
