"""The template that a recipe names takes the place of the tokenizer's own, or is refused and leaves it."""

import pytest
from support import smollm2, tiny_model

from align.model.chat_template import policy_tokenizer, read, trl_templates, use
from align.model.locate import ModelError

QUESTION = [{"role": "user", "content": "hi"}]


def asked(tokenizer):
    return tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)


def test_it_takes_the_place_of_the_tokenizers_own(folder, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]")
    assert policy_tokenizer(folder, None).chat_template == tiny_model.CHAT_TEMPLATE
    assert asked(policy_tokenizer(folder, str(file))) == "[user] hi\n[assistant]"
    assert "You are Qwen" in asked(policy_tokenizer(folder, "trl:qwen2_5"))


def test_all_that_trl_ships_for_text_can_be_named_for_a_real_tokenizer():
    tokenizer, refused = smollm2.tokenizer(), {}
    for name in trl_templates():
        try:
            use(tokenizer, f"trl:{name}")
        except ModelError as error:
            refused[name] = str(error)
        else:
            assert tokenizer.chat_template == read(f"trl:{name}")
    assert len(trl_templates()) >= 64
    # those of models that see: the content of their messages is a list of parts, which align never writes
    of_images = ("idefics3", "llava_next", "smolvlm")
    assert sorted(refused) == sorted(f"{name}{end}" for name in of_images for end in ("", "_training"))
    assert all("leaves out what the user says" in why for why in refused.values())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{{ raise_exception('never') }}", "cannot write a conversation of user: TemplateError: never; mend it"),
        ("{{ messages[0].content.parts() }}", "cannot write a conversation of user: UndefinedError"),
        ("{{ messages[0].content }}{{ 1 / (messages | length - 2) }}", "of system and user: ZeroDivisionError"),
        ("{{ messages[0].content }}", "leaves out what the user says in a conversation of system and user"),
        ("", "leaves out what the user says in a conversation of user"),
        ("a\n{% if %}", "line 2: is no Jinja"),
        ("{{ messages[0].content }}{{ cycler.__init__.__globals__ }}", "SecurityError"),
    ],
)
def test_one_that_is_no_good_leaves_the_tokenizer_as_it_was(tmp_path, text, message):
    tokenizer, file = tiny_model.tokenizer(), tmp_path / "own.jinja"
    file.write_text(text)
    with pytest.raises(ModelError, match=message) as raised:
        use(tokenizer, str(file))
    assert str(raised.value).startswith(f"{file}: ")
    assert tokenizer.chat_template == tiny_model.CHAT_TEMPLATE


def test_one_may_refuse_system_messages(tmp_path):
    """As Gemma's does; a row that has one is told so."""
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    use(tokenizer := tiny_model.tokenizer(), str(file))
    assert asked(tokenizer) == "hi"


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(ModelError, match="latin.jinja: cannot be read as text: UnicodeDecodeError"):
        read(str(tmp_path / "latin.jinja"))
    with pytest.raises(ModelError, match="no such file; did you mean '.*latin.jinja'"):
        read(str(tmp_path / "latni.jinja"))
    with pytest.raises(ModelError, match="trl:../x: TRL ships no template of this name; there are: cohere"):
        read("trl:../x")
