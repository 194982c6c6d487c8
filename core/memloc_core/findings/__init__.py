"""The paper's claims as tests on a loaded model and a set of paragraphs: from results to verdicts, numpy only.

A claim is a generator (`Claim.steps`): it yields the requests that it needs, is sent their results, and returns a
`Finding`. Whoever drives it decides where answers come from: the cache alone, the engine process, or an engine of its
own. So every answer is kept by itself, and a claim that was interrupted goes on where it stopped.
"""

from memloc_core.findings.claims import CLAIMS as CLAIMS, NAMES as NAMES, Claim as Claim
from memloc_core.findings.setting import DRAWN_FROM as DRAWN_FROM, Setting as Setting
