#!/usr/bin/env python3
"""Makes every fixture that says what the reference implementations say: one command, the same bytes each time.

    python tools/reference/make.py            all
    python tools/reference/make.py bundled    only what depends on models/bundled

Needs what tools/reference/requirements.txt lists. Nothing is fetched.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["tiny", "templates", "tokenizers", "quants", "quantised", "embedding", "bundled"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which fixtures (default: all)")
    chosen = parser.parse_args().parts or PARTS
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    engine = ROOT / "crates/engine/tests/fixtures"
    model = ROOT / "crates/model/tests/fixtures"
    if "tiny" in chosen:
        import tiny

        tiny.make(engine / "tiny", ROOT / "crates/nn/tests/fixtures/families")
    if "templates" in chosen:
        import templates

        templates.make(model / "templates")
    if "tokenizers" in chosen:
        import tokenizer_golden

        tokenizer_golden.make(model / "tokenizers")
    if "quants" in chosen:
        import quants

        quants.make(model / "quants")
    if "quantised" in chosen:
        import quantised

        quantised.make(engine / "quantised")
    if "embedding" in chosen:
        import embedding

        embedding.make(engine / "embedding")
    if "bundled" in chosen:
        import bundled

        bundled.make(ROOT / "models/bundled", engine)
    return 0


if __name__ == "__main__":
    sys.exit(main())
