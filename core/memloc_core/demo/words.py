"""The vocabulary of the invented documents: ordinary words by slot, and rare invented names.

Every list stands in a fixed order that the Zipf weights of `text.py` follow: its first words are the common ones.
"""

_TABLE = """
month: January, February, March, April, May, June, July, August, September, October, November, December
weekday: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday
colour: red, amber, green, blue, grey, crimson, yellow, olive, white, indigo, brown, violet, scarlet, ivory, black,
  copper, orange, teal, silver, maroon, pink, golden, beige, lilac
building: library, school, mill, bakery, station, harbour, chapel, museum, hospital, bridge, orchard, theatre, ferry,
  granary, airfield, quarry, observatory, brewery, arcade, lighthouse, foundry, market, archive, tannery
buildings: schools, libraries, mills, stations, bakeries, bridges, chapels, museums, harbours, hospitals, theatres,
  orchards, ferries, granaries, quarries, breweries, arcades, airfields, lighthouses, foundries, markets, archives,
  tanneries
workers: teachers, drivers, nurses, masons, engineers, bakers, farmers, clerks, painters, pilots, miners, weavers,
  surveyors, porters, tailors, gardeners, plumbers, sailors, carpenters, printers, welders, foresters, glaziers,
  coopers
office: mayor, governor, inspector, secretary, treasurer, harbourmaster, commissioner, director, chairman, bishop,
  sheriff, architect, curator, engineer, archivist, auditor, registrar, coroner
adjective: old, new, small, narrow, public, wooden, empty, northern, quiet, broken, modern, heavy, southern, plain,
  famous, wet, bright, shallow, costly, eastern, temporary, rusty, ancient, gentle, hidden, western, noisy, stone,
  humble, painted, vast, crooked, distant, sturdy, cheap, frozen, silent, dusty, private, hollow
manner: quickly, quietly, again, early, late, carefully, twice, slowly, together, badly, gladly, often, abroad,
  overnight, gently, firmly, rarely, openly, in secret, at dawn, without notice, in winter, by boat, under protest,
  for free, once more
did: repaired, opened, closed, sold, painted, moved, inspected, praised, bought, cleaned, measured, flooded, copied,
  rebuilt, leased, insured, blamed, restored, emptied, guarded, visited, borrowed, surveyed, mocked, rented, numbered,
  heated, photographed, abandoned, defended, widened, catalogued
do: repair, close, sell, open, paint, move, inspect, rent, buy, clean, measure, drain, copy, rebuild, lease, insure,
  restore, empty, guard, visit, survey, widen, heat, fence, demolish, extend, replace, rename
matter: water, money, traffic, noise, bread, timber, smoke, heating, rent, rain, coal, fishing, tuition, drainage,
  glass, salt, wool, lighting, parking, grain, paper, rust, frost, ink
opinion: overdue, reckless, generous, pointless, brave, unlawful, sensible, shameful, modest, historic, wasteful,
  hasty, inevitable, curious, dangerous, elegant, premature, timid
street: Mill, Church, Bridge, Station, Orchard, Harbour, Chapel, Market, Castle, River, Garden, School, Forest, Tower,
  Canal, Abbey, Spring, Meadow
vegetable: onions, carrots, leeks, potatoes, mushrooms, lentils, beans, turnips, peas, celery, parsnips, fennel,
  cabbage, radishes, chickpeas, spinach, beetroot, pumpkin, barley, courgettes, shallots, kale
flavour: salt, pepper, thyme, garlic, butter, honey, lemon, mustard, ginger, nutmeg, parsley, vinegar, cumin, sage,
  cinnamon, dill, saffron, cloves, chives, rosemary, anise, paprika, caraway, tarragon
dish: soup, stew, pie, pudding, cake, salad, broth, tart, bread, omelette, dumpling, casserole, relish, pancake,
  chowder, gratin, biscuit, porridge
vessel: pan, bowl, pot, oven, tray, jug, skillet, kettle, dish, basin, colander, crock, mortar, tin, sieve, casserole
cook: stir, chop, boil, add, fry, simmer, slice, drain, bake, grate, season, whisk, peel, fold, roast, soak, mash,
  strain, steam, brown, cool, dice, sift, rinse
thing: buffer, file, socket, index, cursor, queue, header, token, thread, packet, stream, cache, record, lock, timer,
  page, node, handle, frame, channel, segment, bitmap, parser, signal, row, batch, glyph, journal, matrix, filter,
  digest, anchor, bucket, payload, iterator, shader
things: files, buffers, sockets, entries, headers, queues, tokens, threads, packets, caches, records, indices, locks,
  timers, pages, nodes, cursors, frames, channels, batches, segments, bitmaps, parsers, signals, rows, glyphs,
  filters, digests, buckets, anchors, journals, iterators
verb: read, write, close, flush, open, parse, lock, copy, merge, split, reset, load, sort, encode, drop, wrap, scan,
  rotate, pad, append, verify, trim, resize, notify, decode, pin, shrink, mark, fork, swap
verbs: reads, writes, returns, closes, parses, flushes, opens, locks, copies, merges, splits, resets, loads, sorts,
  encodes, drops, wraps, scans, rotates, pads, appends, verifies, trims, resizes, notifies, decodes, pins, shrinks,
  marks, swaps
trait: empty, null, stale, sorted, large, invalid, shared, open, signed, nested, local, remote, mutable, aligned,
  sparse, pending, atomic, compressed, cyclic, deferred, dense, volatile, cached, unsorted
platform: Linux, Windows, macOS, FreeBSD, Solaris, Android, Haiku, NetBSD, illumos, Plan9, AIX, Minix
licence: MIT, BSD, Apache, GPL, MPL, ISC, Zlib, LGPL, Artistic, EPL, Boost, Eiffel
plea: damages, costs, a hearing, relief, custody, possession, an injunction, interest, a new trial, lost wages, an
  apology, the deposit, an account, a stay, the title, unpaid rent, a refund, an audit, the sealed file, safe passage
ground: fraud, neglect, delay, trespass, duress, breach of contract, mistake, nuisance, forgery, perjury, bad faith,
  slander, lack of notice, undue influence, theft, unsafe work, waste, want of jurisdiction
paper: letter, deed, invoice, map, ledger, affidavit, diary, receipt, contract, photograph, will, licence, lease,
  drawing, permit, telegram, survey, cheque, logbook, manifest
papers: letters, deeds, invoices, maps, ledgers, diaries, receipts, contracts, photographs, leases, drawings, permits,
  telegrams, surveys, cheques, logbooks, manifests, affidavits
topic: gardening, sailing, history, chess, cooking, cycling, astronomy, pottery, poetry, archery, weaving, beekeeping,
  fencing, botany, genealogy, knitting, rowing, puppetry, falconry, origami
offer: a free ticket, a discount, a calendar, an atlas, a mug, a second copy, a poster, an umbrella, a tote bag, a
  notebook, an early seat, a set of stamps, a jar of honey, a signed print, an almanac, a pocket map
field: name, email, address, colour, size, title, age, city, note, phone, date, weight, price, owner, region, status,
  level, code, shift, grade, seat, route, badge, term
tag: div, span, p, li, td, a, em, ul, tr, nav, h2, th, h3, ol, label, code, section, dl, aside, strong, footer
greeting: Hello all, Hi everyone, Dear list, Good morning, Hello again, Hi folks, Greetings, Dear colleagues
doubt: strange, wrong, fine, slow, useful, risky, fixed, harmless, unclear, related, known, missing, fragile, tested,
  ugly, obsolete, untidy, lossy, subtle, clever
"""


def _lists(table: str) -> dict[str, tuple[str, ...]]:
    """Words by slot, from lines of `slot: word, word, ...` that go on in indented lines."""
    lines = table.strip().replace("\n  ", " ").splitlines()
    return {slot: tuple(words.split(", ")) for slot, words in (line.split(": ") for line in lines)}


ORDINARY = _lists(_TABLE)

_NAME_PARTS = _lists("""
heads: Vel, Tor, Bram, Ost, Kel, Mar, Dun, Har, Fen, Lor, Syl, Gar, Wen, Nor, Pel, Ras, Tam, Ul, Zan, Cor, Jor, Hul,
  Quen, Brix, Ald, Eik, Thor, Yar, Ing, Obr
person: drin, vik, mann, sson, ova, etti, aker, idge, rath, elius, quist, bury, onde
town: moor, stead, haven, wick, mouth, gate, combe, thwaite, borg, dale, minster, holm
project_heads: zeph, kyn, mox, trell, varn, plum, quor, jask, bex, lund, gri, tavo, nim, sorb, wex, obel, fyl, hask,
  ruv, dro
project: io, kit, ra, lith, wire, ado, box, um, ette, ox, ula, mint
""")


def _invented(heads: str, tails: str, n: int, step: int) -> tuple[str, ...]:
    """`n` different names, spread over all heads and tails; `step` shares no divisor with the number of pairs."""
    names = [head + tail for tail in _NAME_PARTS[tails] for head in _NAME_PARTS[heads]]
    return tuple(names[i * step % len(names)] for i in range(n))


RARE: dict[str, tuple[str, ...]] = {
    "person": _invented("heads", "person", 190, 97),
    "town": _invented("heads", "town", 150, 83),
    "project": _invented("project_heads", "project", 110, 71),
}
"""Invented names by slot, 450 in all. Each becomes one token of the tokenizer, both after a space and without one."""
