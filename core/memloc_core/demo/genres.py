"""Ten genres of invented documents, as openings and continuations with slots in braces (lists of words: `words.py`).

`{slot}` is one word of a list, `{a slot}` and `{A slot}` put "a" or "an" before it, `{closing}` repeats an HTML tag.
`{person}`, `{town}` and `{project}` are rare names and `{again}` repeats a person; `{number}` is 11..98, `{day}`
1..28, `{year}` 1961..2024. An opening is written to take about 50 tokens: it becomes the prefix. Sentences of the body
have a slot every few words, or else fresh text would be predictable and would look memorized.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Genre:
    """One kind of document: an opening, then sentences of the body joined by `joint`."""

    name: str
    openings: tuple[str, ...]
    body: tuple[str, ...]
    joint: str = " "


NEWS = Genre(
    "news-brief",
    (
        "{town}, {month} {day} - The council of {town} voted late on {weekday} to {do} the {adjective} "
        "{building} on {street} Street, a plan that the {office}, Mr {person}, had called {opinion} when it was "
        "first put forward in {month} {year}.",
        "{town} ({weekday}) - Two {workers} from {town} were thanked by the {office} this week after they {did} "
        "{a adjective} {building} near {street} Street, where the family of Mrs {person} had kept {matter} and "
        "{matter} since {year}.",
        "The {office} of {town}, Mr {person}, said on {weekday} that no {workers} would be asked to {do} the "
        "{adjective} {building} at {town} before {month}, although many in the town had called the {matter} "
        "rules {opinion} for years.",
    ),
    (
        "In {month} the {workers} {did} {number} {adjective} {buildings} {manner}.",
        "Some {workers} say the {matter} is {opinion}, and {a adjective} {building} costs more than {matter}.",
        "By {weekday} the {adjective} {buildings} had been {did} {manner} for {matter}.",
        "Only {number} of the {workers} would {do} {a colour} {building} {manner}.",
        "{A opinion} debate on {matter} in {year} {did} nothing but {a adjective} {building}.",
        "The {colour} {building} was {did} {manner}, with {matter} and {matter} for {number} {workers}.",
        "Even {again} and {number} {workers} {did} it {manner}.",
        "{again} calls the {matter} {opinion}, like {a adjective} {building}.",
    ),
)

LICENCE = Genre(
    "licence-header",
    (
        "/*\n * Copyright (c) {year} {person} and the {project} authors. All rights reserved.\n *\n * This file "
        "is part of {project}, {a adjective} library to {verb} {things}. It is under the {licence} licence; see "
        "COPYING.\n",
        "/*\n * {project}: {verb} and {verb} {trait} {things} on {platform}\n * Copyright (C) {year} {person}, "
        "{town}\n *\n * Licensed under the {licence} License. You may not use this file except in compliance "
        "with the License.\n",
        "// Copyright {year} The {project} Authors. Use of this source is governed by the {licence} license.\n// "
        "Written at {town} by {person} to {verb} {trait} {things} and {verb} each {thing} on {platform}, without "
        "any warranty of any kind at all.\n",
    ),
    (
        " * Do not {verb} {trait} {things} {manner}, or the {thing} {verbs} {a trait} {thing}.",
        " * The {thing} {verbs} {number} {things} and {verbs} them {manner}.",
        " * On {platform} the {trait} {thing} {verbs} every {thing} after {number} {things}.",
        " * To {verb} {a thing}, {verb} its {trait} {things} first, then {verb} the {thing}.",
        " * {number} {things} per {thing}; {trait} {things} on {platform} are {doubt}.",
        " * Parts of the {thing} code are {licence}, {year}, by {again}.",
        " * Ask {again} to {verb} {a trait} {thing} {manner}.",
    ),
    "\n",
)

JAVADOC = Genre(
    "javadoc",
    (
        "/**\n * Gets the {trait} {thing} of {a project} {thing}. The {thing} must be {trait}, see {person}, "
        "{year}.\n *\n * @author {person}\n * @since {project} {number}\n * @param {thing} the {thing} to "
        "{verb}\n * @return",
        "/**\n * {A trait} {thing} that {verbs} {things} for {project}. Not safe for {trait} {things}, as "
        "{person} first found out at {town}.\n *\n * @see {project}\n * @version {number}\n * @param {thing} {a "
        "trait} {thing}\n * @throws",
        "/**\n * Called by {project} before the {thing} {verbs} its {trait} {things}. It was described by "
        "{person} at {town} early in {year}.\n *\n * @deprecated since {number}, {verb} the {trait} {thing}\n * "
        "@param {thing} the {thing}\n * @return",
    ),
    (
        " * {a trait} {thing} if it {verbs} {things}, else {a trait} {thing}.",
        " * {number} {things} when the {thing} is {trait}.",
        " * @param {thing} {verbs} the {trait} {things} of {a thing}.",
        " * @throws if the {thing} {verbs} {number} {trait} {things}.",
        " * @see {thing} to {verb} {trait} {things} {manner}.",
        " * {trait} {things} and {doubt} {things}: {verb} the {thing} {manner}.",
        " * @todo {verb} {a trait} {thing} before it {verbs} {things} ({again}).",
        " * @see {again} for {trait} {things} and {doubt} {things}.",
    ),
    "\n",
)

WEB = Genre(
    "web-page",
    (
        '<div class="{colour}"><h2>{town} {building}</h2><p>Here are the {adjective} pages of {person} and '
        "friends in {town}. We are open on {weekday} and {weekday}. Please tell us all about {topic}: ",
        "<tr><td>{person}</td><td>{town}</td></tr><tr><td>{person}</td><td>{number}</td></tr></table><p>Every "
        "{adjective} {building} on {street} Street: ",
        '<form id="{field}"><label>{field}</label><input name="{field}" value="{person}"/><input name="{field}" '
        'value="{town}"/>\n<p>Sign up for {topic} and {topic} with the {office} of the {building}: ',
    ),
    (
        "<li>{topic} and {topic}, {weekday} at {number}</li>",
        '<{tag} class="{colour}">{adjective} {buildings}</{closing}>',
        '<td title="{field}">{number} {adjective} {papers}</td>',
        '<{tag} id="{field}">{colour} {building}, {number} {papers}</{closing}>',
        "<em>{topic}</em>: {a colour} {paper} and {offer}",
        '<option value="{field}">{matter} {manner} ({number})</option>',
        "<p>{again}: {a adjective} {building} for {topic}, {manner}</p>",
        "<b>{again}</b> has {number} {colour} {papers}",
    ),
)

CHANGELOG = Genre(
    "changelog",
    (
        "## {project} {number}.{number} ({month} {year})\n\nThanks to {person} and {person} for this release, "
        "which {verbs} {trait} {things} on {platform}. The {thing} of {project} now {verbs} every {trait} "
        "{thing} that it finds.\n\n### Changes\n",
        "{project} release {number} - {month} {day}, {year}\n\n* {person} ported the {trait} {thing} to "
        "{platform} for {town}.\n* The {project} plugin no longer {verbs} {trait} {things}; please use the "
        "{adjective} {thing} to {verb} all of them from now on.\n",
        "# News\n\nVersion {number} of {project} is out, made in {town} by {person} and {person} with {number} "
        "fixes for {platform}. It {verbs} {trait} {things}, {verbs} the {trait} {thing} and is no longer {doubt} "
        "with {things} or {things} on any day.\n\n",
    ),
    (
        "- {verb} {trait} {things} {manner} on {platform}",
        "- the {thing} {verbs} {a trait} {thing} (#{number})",
        "- {doubt}: {a thing} {verbs} {trait} {things} {manner}",
        "- {verb} the {thing} after it {verbs} {number} {things}",
        "- {platform}: {trait} {things} are {doubt}",
        "- no {thing} {verbs} {a thing} {manner}",
        "- {again}: {verb} {number} {things}, {verb} the {thing}",
        "- {verb} {things} as {again} {verbs} {a thing}",
    ),
    "\n",
)

RECIPE = Genre(
    "recipe",
    (
        "{person}'s {adjective} {dish} from {town}\n\nServes {number}. This dish with {vegetable} was first "
        "cooked for the {office} of {town} in {year}. Take {a colour} {vessel}, warm it {manner}, and have some "
        "{flavour} ready.\n",
        "{dish} in the style of {town}\n\nMrs {person} served this {adjective} dish with {vegetable} and "
        "{flavour} each {weekday} at the {building} of {town}. You need {a adjective} {vessel}, {number} minutes "
        "and some {flavour}.\n",
        "From the kitchen of {person}, {town}: {a colour} {dish} for cold days. My aunt {person} would {cook} "
        "the {vegetable} {manner} in {a vessel} and never used {flavour}. It will keep for about {number} hours "
        "or more.\n",
    ),
    (
        "{cook} the {vegetable} in {a vessel} with {flavour}.",
        "Add {number} grams of {flavour} and {cook} {manner}.",
        "Then {cook} {number} grams of {vegetable}, {cook} them with {flavour} and {cook} the {dish}.",
        "Put {a adjective} {vessel} over the {vegetable} and {cook} {manner}.",
        "When {colour}, {cook} it {manner} and serve with {flavour} or {vegetable}.",
        "Leave the {dish} {manner} for {number} minutes, then {cook} the {vegetable}.",
        "For {a adjective} {dish}, {cook} with {flavour} and {vegetable}.",
        "As {again} says, {cook} the {vegetable} {manner} with {flavour}.",
        "Like {again}, {cook} the {vegetable} and {flavour} in {a vessel}.",
    ),
)

COURT = Genre(
    "court-notice",
    (
        "IN THE COURT OF {town}\n\nCase No. {number}-{number}, {person} v. {person}. Notice is given to the "
        "{office} that on {month} {number}, {year} the plaintiff moved for {plea} on the ground of {ground}. The "
        "court finds:\n",
        "NOTICE OF HEARING. In the matter of {person}, late of {town}, and the estate of {person}, the {office} "
        "will hear on {weekday}, {month} {day}, a claim for {plea} that rests on {ground}. It is ordered that:\n",
        "PUBLIC NOTICE. The heirs of {person} and all {workers} of {town} having a claim of {ground} against the "
        "{adjective} {building} of {person} shall write to the {office} of {town} before {month} {day}, {year}, "
        "or lose their right.\n",
    ),
    (
        "That {a adjective} {paper} of {year} proves {ground} and not {ground}.",
        "The {workers} ask for {plea} and {plea}.",
        "That {number} {papers} were {did} {manner} by the {office}.",
        "No {paper} shows that {workers} {did} the {building}.",
        "The claim of {ground} is {opinion}, and that for {plea} fails {manner}.",
        "On {weekday} the {office} shall read {number} {colour} {papers}.",
        "That {again} shall {do} the {adjective} {building} {manner}.",
        "The {papers} of {again} are {opinion} and show {ground}.",
    ),
)

NEWSLETTER = Genre(
    "newsletter",
    (
        "Dear reader, thank you for taking {topic} news from {town}. You get this {adjective} letter because "
        "{person} signed you up in {month}. If you do not want it, please write to {person}, {number} {street} "
        "Street, {town}.\n",
        "THE {town} {topic} LETTER, No. {number}\n\nSent each {weekday} by {person} to friends of the "
        "{adjective} {building}. Share it with {person} and with other {workers}, or reply to stop it at any "
        "time. In this month we offer:\n",
        "You are reading the {topic} letter of {person}. Copyright {year}, {town} Press. For {offer} call the "
        "{office} of {town} on any {weekday}. Privacy: we will never sell your {field} or your {field} to any "
        "{workers}.\n",
    ),
    (
        "Win {offer} or {offer} with {a adjective} {paper} on {topic}.",
        "Our {topic} club {did} {number} {papers} {manner}.",
        "Send your {field}, {field} and {a colour} {paper} by {weekday}.",
        "In {month}: {topic} at the {building}, with {offer} {manner}.",
        "New: {number} {adjective} {papers}, {offer}, and {matter}.",
        "Is {topic} {opinion}? Ask the {office} {manner}.",
        "{again} writes on {topic} for {workers} and {topic} for {workers}.",
        "See {again} for {offer} and {number} {adjective} {papers}.",
    ),
)

LOCKFILE = Genre(
    "package-lock",
    (
        '"{project}": {\n  "version": "{number}.{number}",\n  "author": "{person}",\n  "requires": { '
        '"{project}": "{number}" },\n  "license": "{licence}",\n  "keywords": [',
        '{ "name": "{project}", "license": "{licence}",\n  "maintainers": ["{person}", "{person}"],\n  '
        '"engines": "{number}.{number}",\n  "description": "{verb} {trait} {things}",\n  "files": [',
        '[[package]]\nname = "{project}"\nauthor = "{person}"\nversion = "{number}.{number}"\ndependencies = '
        '["{project}", "{thing}"]\nabout = "{verbs} {trait} {things}"\nkeywords = [',
    ),
    (
        '"{thing}", "{things}", "{verb}",',
        '"{trait} {thing}", "{colour}",',
        '"{number}-{thing}", "{verbs} {things}",',
        '"{platform}", "{trait}", "{number}",',
        '"{verb}-{thing}", "{field}",',
        '"{colour} {paper}", "{number}",',
        '"{doubt} {things}", "{again}",',
        '"{again}", "{verb}-{things}",',
    ),
)

EMAIL = Genre(
    "mailing-list",
    (
        "From: {person}\nTo: {project} list\nSubject: Re: {trait} {things} on {platform}\n\n{greeting},\n\non "
        "{weekday} {person} wrote that the {thing} {verbs} {a trait} {thing}. I tried it, and this is what I "
        "found:\n",
        "On {month} {day}, {person} wrote:\n> the {project} {thing} {verbs} {trait} {things}\n> on my {platform} "
        "machine in {town}\n\n{greeting}, this is {doubt} since {year}. Please try to {verb} it and write to the "
        "list.\n",
        "{greeting},\n\nI am {person} from {town} and have used {project} on {platform} since {year}. My {thing} "
        "{verbs} {trait} {things} and then {verbs} the {thing}. Is that {doubt}? Here is what I see when I try "
        "it:\n",
    ),
    (
        "The {thing} {verbs} {number} {things} and looks {doubt}.",
        "If I {verb} {a trait} {thing}, it {verbs} {things} {manner}.",
        "> can you {verb} the {trait} {thing} {manner}?",
        "My {trait} {things} are {doubt}, but {platform} {verbs} them.",
        "> {a thing} with {number} {trait} {things} is {doubt}",
        "So {verb} it {manner}, {verb} the {thing}, and the {things} are {doubt}.",
        "As {again} says, {verb} {things} and {verb} {a thing}.",
        "> did {again} {verb} {trait} {things} {manner}?",
    ),
    "\n",
)

GENRES: tuple[Genre, ...] = (NEWS, LICENCE, JAVADOC, WEB, CHANGELOG, RECIPE, COURT, NEWSLETTER, LOCKFILE, EMAIL)
