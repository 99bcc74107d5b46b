"""docs/: the book builds without a word, every link leads somewhere, and every command in it is one that the programs know."""

import re
import shlex
import tempfile
import unittest
from functools import cache
from pathlib import Path

from common import DOCS, ROOT, binary, run, settings

PAGES = sorted(DOCS.rglob("*.md"))


def prose(text):
    """The page without fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path):
    """The anchors that mdBook and GitHub make of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    found = {}
    for heading in re.findall(r"^#{1,6} (.*)$", text, re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
    return set(found) | {f"{slug}-{n}" for slug, count in found.items() for n in range(1, count)}


class Book(unittest.TestCase):
    def test_the_book_builds_without_a_warning(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run("mdbook", "build", "--dest-dir", folder, ROOT)
            for word in ("WARN", "ERROR", "warning", "error"):
                self.assertNotIn(word, done.stdout + done.stderr)
            self.assertTrue(Path(folder, "install.html").is_file())

    def test_every_page_is_in_the_contents(self):
        listed = set(re.findall(r"\]\(([^)]+\.md)\)", (DOCS / "SUMMARY.md").read_text()))
        there = {page.relative_to(DOCS).as_posix() for page in PAGES if page.name != "SUMMARY.md"}
        self.assertEqual(there - listed, set(), "add it to docs/SUMMARY.md")
        self.assertEqual(listed - there, set())

    def test_every_link_leads_somewhere(self):
        for page in [*PAGES, ROOT / "README.md"]:
            for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)", prose(page.read_text())):
                if re.match(r"[a-z]+://|mailto:", target):
                    continue
                name, _, anchor = target.partition("#")
                path = (page.parent / name).resolve() if name else page
                self.assertTrue(path.exists(), f"{page.name}: {target}")
                if anchor:
                    self.assertIn(anchor, anchors(path), f"{page.name}: {target}")

    def test_every_file_that_is_named_exists(self):
        for page in PAGES:
            for path in re.findall(r"(?<![\w/.-])((?:deploy|scripts)/[\w./@*-]*[\w*])", page.read_text()):
                if "*" in path:
                    self.assertTrue(list(ROOT.glob(path)), f"{page.name}: {path}")
                elif page.name not in ("CONTRIBUTING.md",):
                    self.assertTrue((ROOT / path).exists(), f"{page.name}: {path}")

    def test_every_make_target_exists(self):
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        for page in [*PAGES, ROOT / "README.md"]:
            for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
                self.assertIn(target, targets, page.name)

    def test_the_runbook_names_every_alert_with_its_severity(self):
        import yaml

        rules = yaml.safe_load((ROOT / "deploy/alerts/voiceai.rules.yaml").read_text())
        text = (DOCS / "runbook.md").read_text()
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    self.assertIn(f"| [{rule['alert']}](runbooks/{rule['alert']}.md) | {rule['labels']['severity']} |", text)

    def test_the_runbook_covers_what_operators_see(self):
        """The symptoms that the services' predecessors were known for."""
        text = (DOCS / "runbook.md").read_text()
        for symptom in ("nothing scales", "adding fails", "new server does not become healthy", "removed too eagerly", "mail is missing", "jobs are not run",
                        "stuck in `active`", "MessageRejected", "CredentialsProviderError", "refused by the proxy", "backlog grows", "given up", "suppressed",
                        "sign-in fails", "time-outs", "malformed", "no metrics", "an alarm that is none", "Redis needs much memory", "conversation was never finished",
                        "did not fire", "the database is lost", "a value on the host is not used"):
            self.assertIn(symptom, text)

    def test_settings_in_capitals_are_settings(self):
        """A name of our own form, in code, on the pages of this book's operators."""
        ours = re.compile(r"`((?:DATABASE|REDIS|QUEUE|LEADER|SCALING|HEARTBEAT|DRAIN|WORKER|SHUTDOWN|START|DISPATCHER|PROVIDER|HETZNER|S3|MAIL|SMTP|SES|EMAIL|EXPORTS|RECORDINGS)_[A-Z0-9_]+)(?:=[^`]*)?`")
        known = settings()
        for name in ("install", "upgrade", "security", "sizing", "runbook", "replay", *(f"runbooks/{page.stem}" for page in (DOCS / "runbooks").glob("*.md"))):
            for setting in ours.findall((DOCS / f"{name}.md").read_text()):
                base = setting.removesuffix("_FILE")
                self.assertTrue(setting in known or base in known or re.fullmatch(r"QUEUE_[A-Z_]+_(CONCURRENCY|RATE|ATTEMPTS|BACKOFF)", setting), f"{name}.md: {setting}")


@cache
def help_of(service, words):
    """What `--help` says of a command, its subcommands and its options."""
    text = run(binary(service), *words, "--help").stdout
    listing = re.search(r"^Commands:\n(.*?)(?:\n\n|\Z)", text, re.M | re.S)
    subcommands = set(re.findall(r"^  ([a-z][a-z-]*)", listing.group(1), re.M)) if listing else set()
    return text, subcommands, set(re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", text))


def invocations(text):
    """Every command line of ours in a page's code: (service, words)."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.M | re.S)
    code = [block for language, block in blocks if language != "text"]
    lines = [line for block in code for line in block.replace("\\\n", " ").splitlines()]
    # A span may go on in the next line.
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))]
    for line in lines:
        for found in re.finditer(r"(?<![\w./@-])voiceai-(scaler|tasker)((?: +voiceai-(?:scaler|tasker))?)((?: +[^\s|;&>#]+)*)", line):
            service = found.group(2).strip().removeprefix("voiceai-") or found.group(1)
            rest = line[found.start(3):]
            if not re.match(r" +[a-z-]", rest):
                continue
            # Up to the end of the command: a comment, a pipe, another command.
            try:
                lexer = shlex.shlex(re.split(r"\s#\s|…", rest)[0], posix=True, punctuation_chars="|;&<>()")
                lexer.whitespace_split = True
                words = []
                for word in lexer:
                    if set(word) <= set("|;&<>()"):
                        break
                    words.append(word)
            except ValueError:
                words = rest.split()
            if words and words[0] != "--":
                yield service, words, line.strip()


def judged(service, words):
    """What is wrong with a command line, or None."""
    path = []
    while words and not words[0].startswith("-") and words[0] in help_of(service, tuple(path))[1]:
        path.append(words.pop(0))
    text, subcommands, options = help_of(service, tuple(path))
    if subcommands and words and not words[0].startswith("-"):
        # `pause|resume`, `list` and the like in a list of verbs.
        verbs = words[0].split("|")
        if not set(verbs) <= subcommands:
            return f"`{' '.join([f'voiceai-{service}', *path])}` has no subcommand {words[0]}"
        return None
    for word in words:
        if word.startswith("-") and word not in ("-", "--"):
            name = word.partition("=")[0].strip("[]")
            if name not in options:
                return f"`{' '.join([f'voiceai-{service}', *path])}` has no option {name}"
    return None


class Commands(unittest.TestCase):
    def test_every_command_line_is_one_that_the_programs_know(self):
        seen, wrong = 0, []
        for page in [*PAGES, ROOT / "README.md"]:
            for service, words, line in invocations(page.read_text()):
                seen += 1
                fault = judged(service, list(words))
                if fault:
                    wrong.append(f"{page.relative_to(ROOT)}: {fault}: {line}")
        self.assertGreater(seen, 100)
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def test_a_wrong_one_would_be_found(self):
        for line, fault in (("$ voiceai-tasker quue list", "quue"), ("$ voiceai-tasker queue list --colour", "--colour"), ("$ docker exec x voiceai-scaler frob", "frob"),
                            ("$ docker exec voiceai-tasker voiceai-tasker jobs mend", "mend")):
            found = [judged(service, list(words)) for service, words, _ in invocations(f"```console\n{line}\n```\n")]
            self.assertTrue(found and found[0] and fault in found[0], (line, found))

    def test_bare_commands_of_the_runbooks_are_known_too(self):
        """In tables the program's name is left out: `queue list`, `jobs show ID`."""
        for name in ("runbook", "replay", *(f"runbooks/{page.stem}" for page in (DOCS / "runbooks").glob("*.md"))):
            text = re.sub(r"^```.*?^```", "", (DOCS / f"{name}.md").read_text(), flags=re.M | re.S)
            for code in re.findall(r"`((?:queue|jobs|cron|backup|config|audit) [a-z][^`]*)`", text):
                words = shlex.split(code.replace("…", ""))
                faults = [judged(service, list(words)) for service in ("tasker", "scaler")]
                self.assertIn(None, faults, f"{name}.md: {code}: {faults}")
