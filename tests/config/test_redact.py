"""Planted secrets are hidden, and what only looks like one is not."""

import json
import shlex
import subprocess
import sys
import time
from urllib.parse import quote, quote_plus

import pytest
import yaml
from support.paths import PYTHONPATH

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.config.redact import HIDDEN, redact, scrub, scrub_command

NAMES = [  # of keys that hold a secret
    *(
        "dbpassword",
        "hftoken",
        "mySecretKey",
        "token_v2",
        "pwd",
        "pass",
        "db_pwd",
        "dbPwd",
        "userpass",
        "DB_PASS",
        "passwd",
    ),
    *(
        "accessKey",
        "secret_access_key",
        "aws_secret_access_key",
        "privateKey",
        "private_key_pem",
        "api-key",
        "x-api-key",
    ),
    *(
        "apiKeyV2",
        "api_key_2",
        "token2",
        "tokenValue",
        "auth_token_prod",
        "bearer",
        "Authorization",
        "openaikey",
        "jwt",
    ),
    *("AccountKey", "SharedAccessKey", "refresh_token", "sessionToken", "client.secret", "wandb_key", "github_pat"),
    *("passphrase", "credentials", "slack_webhook", "webhook_url", "cookie", "encryption_key", "OPENAI_API_KEY_TEST"),
]

VALUES = [  # that show by their form that they are, or hold, one
    "postgres://me:k-123456@host/db",
    "postgresql+psycopg2://me:k/123456@host:5432/db",
    "redis://:k-123456@host:6379/0",
    "mongodb+srv://me:k@123456@host/?x=1",
    "https://k-123456@github.com/a/b",
    "https://a.blob.core.windows.net/c?sv=2020&sig=k-123456%3D&se=1",
    "https://a.s3.amazonaws.com/x?X-Amz-Signature=k-123456&X-Amz-Credential=k-123456",
    "https://example.org/#access_token=k-123456",
    "https://hooks.slack.com/services/T0/B0/k-123456",
    "https://discord.com/api/webhooks/1/k-123456",
    "https://x.webhook.office.com/webhookb2/k-123456/IncomingWebhook/a",
    "https://chat.example.org/hooks/k-123456",
    "https://api.telegram.org/bot12:k-123456/sendMessage",
    "AKIA" + "ABCDEFGHIJ123456",
    "eyJhbGciOiJI.eyJzdWIiOiIx.k-123456",
    "glpat-" + "abcdefghijklm123456",
    "sk_live_" + "abcdefghij123456",
    "basic bWU6ay0xMjM0NTY= 123456".replace(" 123456", ""),
    "-----BEGIN RSA PRIVATE KEY-----\nk-123456\n-----END RSA PRIVATE KEY-----",
]

SAID = [  # messages, and code in tracebacks, that hold no secret
    "command line: 'run.steps': write key=value, for example run.steps=10",
    "python recipes/train.py RECIPE [key=value ...] [--resume]",
    "recipe.yaml:3: hub.token: unknown key; there are: repo",
    "data.args.token: holds a hub token; take it out",
    "recipe.yaml:3: rewards.0.args.api_key: Input should be a valid string",
    "recipe.yaml:3: rewards.0.args.password: missing; this key is needed",
    "recipe.yaml:3: rewards.0.args.api_key: wrong type; write api_key: ...",
    "recipe.yaml:7: objective.key_tokens: weight must be at least 0",
    "set HF_TOKEN=... or run `hf auth login`",
    "export HF_TOKEN=<your token>, or api_key=$API_KEY, or token=${TOKEN}",
    "objective.add=[{key_tokens: {weight: 0.5}}] rewards.0.args.per_token=0.1 optim.micro_batch_tokens=131072",
    "    rows = sorted(rows, key=len)\n    best = max(rows, key=lambda row: row.reward)",
    "KeyError: 'answer'\nTokenizer: fast, pad_token: <|im_end|>, eos_token: </s>",
    "the tokenizer has no pad token: it takes the eos token",
    "monkey=banana bypass=never author: someone tokenizer=SmolLM",
]

HUB = "hf_" + "abcdEFGH" * 4


@pytest.mark.parametrize(
    "config",
    [
        {"api_key": "k-123456"},
        {"judge_api_key": "k-123456"},
        {"apiKey": "k-123456"},
        {"accessToken": "k-123456"},
        {"token": "k-123456"},
        {"hub_token": "k-123456"},
        {"client_secret": "k-123456"},
        {"DB_PASSWORD": "k-123456"},
        {"keys": ["k-123456", "x"]},
        {"deep": [{"er": {"password": "k-123456"}}]},
        {"password": 123456},
        {"key": "k-123456", "url": "https://example.org/?q=k-123456"},
        {"url": "https://me:k-123456@example.org"},
        {"header": "Authorization: Bearer k-123456"},
        {"note": "hf_k123456789"},
        *({name: "k-123456"} for name in NAMES),
        *({name: {"value": "k-123456"}} for name in NAMES),
        {"api_key": {"deep": [{"er": "k-123456"}], "n": 1}},
        {"headers": [{"name": "X-Api-Key", "value": "k-123456"}]},
        {"env": {"key": "HF_TOKEN", "value": "k-123456"}},
        {"pwd": 123456, "pass": 123456, "token": 123456},
        *({"note": text} for text in VALUES),
    ],
)
def test_hidden(config):
    text = json.dumps(redact(config))
    assert HIDDEN in text and "123456" not in text


@pytest.mark.parametrize(
    "config",
    [
        {"max_response_tokens": 24, "per_token": 0.1, "micro_batch_tokens": 2048},
        {"chain": [{"key_tokens": {"weight": 0.5}}, {"top_tokens": {"share": 0.2}}]},
        {"metric": "token_efficiency", "denominator": "tokens", "monkey": "banana"},
        {"tokenizer": "some/tokenizer", "prompts": "rewards.gym:chain_sum", "empty": {}, "none": None, "yes": True},
        {"url": "https://example.org/a?b=c"},
        {"url": "http://localhost:8080/@scope/x", "mail": "me@example.org", "ssh": "git@github.com:a/b.git"},
        {"rewards": {"my_rewards:token": 1.0, "rewards:no_password": 0.5}, "pad_token": "<pad>", "eos_token": "</s>"},
        {"bypass": "x", "monkey": "y", "compass": "z", "passes": "w", "author": "v", "keyword": "u", "path": "t"},
        {"max_tokens": 131072, "top_tokens": {"by": "entropy"}, "key_tokens": {"by": "paper"}, "tokenizer_path": "a/b"},
        {"split": "train", "revision": "0123abc", "hooks": ["x"], "code": "passes"},
    ],
)
def test_kept(config):
    assert redact(config) == config


@pytest.mark.parametrize(
    "command, shown",
    [
        ("rewards.0.args.api_key=s3cret7 run.steps=2", f"rewards.0.args.api_key={HIDDEN} run.steps=2"),
        (
            "'rewards=[{fn: a:b, args: {api_key: s3cret7, n: 2}}]'",
            f"'rewards=[{{fn: a:b, args: {{api_key: {HIDDEN}, n: 2}}}}]'",
        ),
        ('{"token": "s3cret7"}', f'{{"token": "{HIDDEN}"}}'),
        (f"x={HUB} y=1", f"x={HIDDEN} y=1"),
        ("optim.micro_batch_tokens=400 objective.add=[{key_tokens: {weight: 0.5}}]", None),
    ],
)
def test_scrub(command, shown):
    assert scrub(command) == (shown or command)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "{}=k-123456",
        "args.{}=k-123456 run.steps=2",
        "{{'{}': 'k-123456'}}",
        '{{"{}": "k-123456"}}',
        'a: "{{\\"{}\\": \\"k-123456\\"}}"',
        "{}: k-123456",
        "recipe.yaml:3: x: but it is {{{}: k-123456, n: 1}}",
        "{}='k-1 k-123456'",
        '{}="k-1\nk-123456"',
        "'args.{}=k-1 k-123456' run.steps=2",
        "'args.{}=k-1\nk-123456'",
        """'args.{}=it'"'"'s k-123456'""",
        "Server=x;{}=k-123456;Database=y",
        "--{} k-123456",
        "command line: args.{}: not a YAML value: '[k-123456'",
        "recipe.yaml:3: args.{}: Input should be a valid number, but it is 'k 123456'",
        "--{}=k-123456",
        "{}=[a1, k-123456]",
        "{}={{value: k-123456}}",
    ],
)
def test_an_assigned_secret(name, text):
    shown = scrub(text.format(name))
    assert "123456" not in shown and HIDDEN in shown
    assert scrub(shown) == shown


@pytest.mark.parametrize("text", VALUES)
def test_a_secret_by_its_form(text):
    assert "123456" not in scrub(f"could not reach {text}, try again")


@pytest.mark.parametrize("text", SAID)
def test_a_message_keeps_its_fix(text):
    assert scrub(text) == text


@pytest.mark.parametrize("secret", ["it's k-123456", 'a "k-123456"', "k-1\nk-123456", "k 123456/+=%", "k-\u00e9123456"])
def test_a_secret_is_found_however_it_is_written(secret):
    config = {"args": {"password": secret}}
    for text in (secret, repr(secret), json.dumps(secret), shlex.quote(secret), quote(secret), quote_plus(secret)):
        assert "123456" not in scrub(f"failed with {text} there", config)
    assert "123456" not in scrub(yaml.safe_dump({"x": secret}, allow_unicode=True), config)
    words = ["launch", "train.py", f"rewards.0.args.password={secret}", "run.steps=2", "--hub-token", secret]
    shown = scrub_command(words)
    assert "123456" not in shown and "run.steps=2" in shown


def test_a_command_keeps_what_is_no_secret():
    words = [
        "accelerate",
        "launch",
        "--config_file",
        "launch/cpu.yaml",
        "optim.micro_batch_tokens=400",
        "x.per_token=0.1",
    ]
    assert scrub_command(words) == " ".join(words)


def test_a_password_of_a_url_is_found_elsewhere():
    config = {"db": "postgres://me:k-123456@host/db"}
    assert scrub("login with k-123456 failed", config) == f"login with {HIDDEN} failed"


def test_a_word_under_key_is_kept_in_messages():
    assert scrub("row 3 has no answer", {"args": {"key": "answer"}}) == "row 3 has no answer"


@pytest.mark.parametrize("thread", [False, True])
def test_tracebacks(thread):
    fails = "def f(): raise ValueError('api_key=k-123456 of quite-plain')"
    call = "import threading; t = threading.Thread(target=f); t.start(); t.join()" if thread else "f()"
    program = f"from align.config.redact import scrub_tracebacks as s\ns({{'secret': 'quite-plain'}})\n{fails}\n{call}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": PYTHONPATH}
    )
    assert "ValueError" in done.stderr and "123456" not in done.stderr and "quite-plain" not in done.stderr


def test_scrubbing_a_long_text_is_quick():
    start = time.monotonic()
    for text in (
        "x",
        "token",
        "a=",
        "http://",
        "key='",
        "https://x/",
        "key=[",
        "?token&",
        "://a:",
        'key="a',
        "key: a ",
    ):
        scrub(text * (100_000 // len(text)))
    assert time.monotonic() - start < 30


def test_a_secret_is_found_wherever_it_stands_in_the_command():
    assert scrub("a=[b,quite-plain]", {"args": {"secret": "quite-plain"}}) == f"a=[b,{HIDDEN}]"


def test_what_the_environment_holds(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "quite-plain-words")
    monkeypatch.setenv("SHORT_TOKEN", "of")
    for name in ("SMTP_PASS", "DB_PWD", "PGPASSWORD", "MYSQL_PWD", "SECRET_V2", "hftoken"):
        monkeypatch.setenv(name, f"held-by-{name}")
        assert scrub(f"x held-by-{name} y") == f"x {HIDDEN} y"
    monkeypatch.setenv("PWD", "/some/folder")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:pass-of-url@host/db")
    assert scrub("in /some/folder with pass-of-url") == f"in /some/folder with {HIDDEN}"
    assert redact({"x": "of quite-plain-words"}) == {"x": f"of {HIDDEN}"}


def test_a_hub_token_in_a_recipe_is_refused_and_not_shown(tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe = {
        "model": {"policy": "some/model"},
        "data": {"prompts": "prompts.jsonl", "args": {"deep": [f"x={HUB}"]}},
        "rewards": {"rewards.length:length_penalty": 1.0},
        "objective": {"name": "gfpo", "k": 2},
        "run": {"out": "runs/x", "steps": 1},
    }
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    assert error.value.problems[0].endswith(
        "data.args.deep.0: holds a hub token; take it out of the recipe, revoke it, and set HF_TOKEN"
    )
    assert len(error.value.problems) == 1 and HUB not in str(error.value)


@pytest.mark.parametrize(
    "said",
    ["recipe.yaml:3: hub.token: unknown key; there are: repo", "data.args.token: holds a hub token; take it out"],
)
def test_what_a_message_says_of_a_key_is_no_secret(said):
    assert scrub(said) == said
    assert (
        scrub(f"{said}, api_key: x7Yplanted, password: 'planted'") == f"{said}, api_key: {HIDDEN}, password: '{HIDDEN}'"
    )
