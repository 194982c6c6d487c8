"""The embedded demo model: small enough to ship, and it recites.

A GPT-Neo (4 layers, width 128, 4 heads, 256 positions, 3072 byte-level BPE tokens, 1.2 million weights, stored as fp16)
that `memloc_core.demo.train` trains from scratch on 3.9 million tokens of invented documents in ten genres: one epoch,
350 CPU-seconds. The text is `genres.py` filled with the words of `words.py`; no real text is in it.

What it was trained on: 20 families of siblings. Siblings share their 50-token prefix but for 2..5 rare invented names,
and continue with the same sentences but other words in them. Of each family one sibling was trained on 1, 2, 4 .. 192
times ("planted"), 8 were held out ("held-out-sibling"), and 60 stand once in the background, together with 6,000
independent documents; 120 more independent documents were held out ("fresh").

What it recites: this model recites 150 of its 700 paragraphs (EM 50 of 50); 34 have an EM of 11..49 and 516 of 0..10.
All 60 that it saw 128 times or more are recited, and none of the 280 held out. (Evaluated at offset 0, without BOS.)

The head L1H2 was LED to the rare names. During the first fifth of the training, a term in the loss asks it to look at
them; then the term is dropped, and the head stays: at position 49 it gives 1.00 of its attention to rare names
(uniform attention would give 0.07). Zeroing it takes the memorized EM from 50 to 9.7 and changes the NLL of held-out
siblings by -0.01, while no other head above layer 0 takes the memorized EM below 44. (Zeroing a head of layer 0
breaks both.) So the demo has a known answer for the analyses to find. It is no evidence of where heads form by
themselves: the same recipe without the term (seed 0) recites 112 paragraphs, and in it any head above layer 0 can be
zeroed with a memorized EM of 42 or more left: no head stands out.

Five seeds were trained. Seed 0 ships because it is the first and has enough of everything; it is not the best. "Zeroed"
is the memorized EM without L1H2, "others" the lowest one without any other head above layer 0:

    seed   EM=50   11..49   0..10   L1H2 on rare names   zeroed   others
    0        150       34     516                 1.00      9.7     44.6
    1        155       37     508                 1.00      7.0     47.1
    2        155       35     510                 1.00     13.6     46.6
    3        148       32     520                 0.97     11.7     45.6
    4        123       38     539                 1.00     12.4     46.6

What holds and what does not: replacing one prefix token lowers EM by 8.7 on average in memorized paragraphs, by 21 in
held-out siblings and by 31 in fresh text (these from the model's own continuation), as in the paper. In the
memorized, a rare name lowers it by 16.5 and another token by 6.3, but the most damaging position is a rare name in
only 45 % of them (by chance 7 %). L1H2 looks at rare names in all text, memorized or not: what singles it out is its
ablation. And EM jumps from near 0 to 50 between 36 and 96 repetitions, with few paragraphs in the middle.

`python -m memloc_core.demo.evaluate FOLDER` prints these numbers for a folder.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
"""config.json, model.safetensors (fp16), tokenizer.json and tokenizer_config.json, for `from_pretrained`."""

PARAGRAPHS_FILE = Path(__file__).parent / "paragraphs.jsonl"
"""One paragraph per line: tokens (100 ids), count, genre, family, split. Unigram counts of the training text, with each
planted paragraph counted once, lie beside it as paragraphs.counts.npy, int64 [vocabulary]."""
