"""What is masked, under which name or by its looks; and that nothing else changes."""

import base64
import json
import re
import string
import time
from urllib.parse import parse_qsl, quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.inspector.looks import MASK
from proxy.inspector.redact import Redactor

REDACT = Redactor()
CARD = "5061460410120223210"  # a published test number: it passes Luhn
VISA = "4111111111111111"


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "authorization", "Proxy-Authorization", "Cookie", "Set-Cookie"),
        *("X-Nomba-Proxy-Key", "X-Api-Key", "nomba-signature", "X-Signature", "client_secret"),
        *("clientSecret", "access_token", "accessToken", "refresh_token", "tokenKey", "token"),
        *("cardNumber", "card_number", "cardPan", "PAN", "cvv", "CVV2", "cardCVV", "securityCode"),
        *("pin", "PIN", "cardPin", "card_pin", "transactionPin", "transactionpin", "otp"),
        *("otpCode", "bvn", "BVN", "customerBvn", "nin", "NIN", "customer_nin", "password"),
        *("userPassword", "privateKey", "NOMBA_PRIVATE_KEY", "signingKey", "jwt", "passcode"),
    ],
)
def test_a_secret_name_hides_its_value(name):
    assert REDACT.value(name, "x1y2z3") == MASK
    assert REDACT.value(name, "") == ""
    assert REDACT.is_secret(name.encode())


@pytest.mark.parametrize(
    "name",
    [
        *("tokenType", "token_type", "expires_in", "shipping", "spinner", "company", "Accept"),
        *("nomba-signature-algorithm", "amount", "merchantTxRef", "opinion", "nomba-timestamp"),
        *("tokenizeCard", "tokenizedCardData", "beginning", "accountId", "accountName", "bankCode"),
        *("X-Request-Id", "idempotencyKey", "X-Idempotent-key", "pinStatus", "description"),
    ],
)
def test_an_innocent_name_hides_nothing(name):
    assert REDACT.value(name, "some value") == "some value"
    assert not REDACT.is_secret(name.encode())


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("accountNumber", "0123456789", f"{MASK}6789"),
        ("beneficiary_account_number", "0123456789", f"{MASK}6789"),
        ("bankAccountNumber", "0123456789", f"{MASK}6789"),
        ("phoneNumber", "+2348031234567", f"{MASK}4567"),
        ("customer_phone", "0803 123 4567", f"{MASK}4567"),
        ("msisdn", "2348031234567", f"{MASK}4567"),
        ("mobile", "1234567", MASK),  # the last digits of a short one would be most of it
        ("accountNumber", "", ""),
    ],
)
def test_account_and_phone_numbers_keep_their_last_digits(name, value, shown):
    assert REDACT.value(name, value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"paid with {VISA} today", f"paid with {MASK} today"),
        ("4111 1111 1111 1111", MASK),
        ("4111-1111-1111-1111", MASK),
        (f"card{CARD}x", f"card{MASK}x"),
        ("4111111111111112", "4111111111111112"),  # no card: Luhn
        ("Bearer abcdef.123456", f"Bearer {MASK}"),
        ("Basic dXNlcjpwYXNz", f"Basic {MASK}"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl", MASK),
        ("key npk_billing_0123456789abcdef", f"key {MASK}"),
        ("https://user:hunter2@host/x", f"https://user:{MASK}@host/x"),
        ("call 08031234567 now", f"call {MASK}4567 now"),
        ("to 0123456789", f"to {MASK}6789"),
        ("+2348031234567", f"{MASK}4567"),
        ("amount 250.00 at 2026-11-25T15:00:00Z", "amount 250.00 at 2026-11-25T15:00:00Z"),
        ("order-0123456789", "order-0123456789"),
        ("pin=1234 amount=5", f"pin={MASK} amount=5"),
        ("otp: 998877", f"otp: {MASK}"),
        ("<soap:Pin>1234</soap:Pin>", f"<soap:Pin>{MASK}</soap:Pin>"),
        ("callback({'cvv':'123'})", f"callback({{'cvv':'{MASK}'}})"),
        ("x\n-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", f"x\n{MASK}"),
        (
            'Content-Disposition: form-data; name="pin"\r\n\r\n1234\r\n--b',
            f'Content-Disposition: form-data; name="pin"\r\n\r\n{MASK}\r\n--b',
        ),
    ],
)
def test_what_looks_like_a_secret_is_masked_under_any_name(text, shown):
    assert REDACT.text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"pin": 1234, "a": 250.00}', f'{{"pin": "{MASK}", "a": 250.00}}'),
        ('{"pin":"1234"}', f'{{"pin":"{MASK}"}}'),
        ('{"p\\u0069n":"1234"}', f'{{"p\\u0069n":"{MASK}"}}'),
        ('{"pin":true,"otp":null,"cvv":false}', '{"pin":true,"otp":null,"cvv":false}'),
        (
            '{"card":{"pin":["1","2",{"x":"3"}]},"y":"z"}',
            f'{{"card":{{"pin":["{MASK}","{MASK}",{{"x":"{MASK}"}}]}},"y":"z"}}',
        ),
        (f"[{VISA}, 12]", f'["{MASK}", 12]'),
        ('{"accountNumber":"0123456789"}', f'{{"accountNumber":"{MASK}6789"}}'),
        ('{"accountNumber":1234567890}', f'{{"accountNumber":"{MASK}7890"}}'),
        ('{"note":"send to 0123456789"}', f'{{"note":"send to {MASK}6789"}}'),
        ('{"merchantTxRef":"0123456789"}', '{"merchantTxRef":"0123456789"}'),
        ('{"id":4111111111111111}', f'{{"id":"{MASK}"}}'),
        ('{"a":1e5,"b":-0.50,"c":[ ]}', '{"a":1e5,"b":-0.50,"c":[ ]}'),
        # cut off, or no JSON at all
        ('{"pin":"12', f'{{"pin":"{MASK}"'),
        ('{"client_secret":"a\\', f'{{"client_secret":"{MASK}"'),
        ('{"pin":', '{"pin":'),
        ("{pin: 1234}", f'{{pin: "{MASK}"}}'),
        ("{'cvv': '123'}", f"{{'cvv': {MASK}}}"),
        ('{"pin" "1234"}', f'{{"pin" "{MASK}"}}'),
        # within a text
        ('{"raw":"{\\"pin\\":\\"1234\\"}"}', f'{{"raw":"{{\\"pin\\":\\"{MASK}\\"}}"}}'),
        ('{"q":"a=1&pin=1234"}', f'{{"q":"a=1&pin={MASK}"}}'),
        ('{"q":"pin%3D1234"}', f'{{"q":"{MASK}"}}'),
        (json.dumps({"b": base64.b64encode(b'{"pin":"1234"}').decode()}), f'{{"b": "{MASK}"}}'),
        (f'{{"{VISA}": 1}}', f'{{"{MASK}": 1}}'),
    ],
)
def test_json_is_masked_in_place(text, shown):
    assert REDACT.json(text) == shown
    assert REDACT.text(text) == shown


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/v1/x?pin=1234&a=b", f"/v1/x?pin={MASK}&a=b"),
        ("/v1/x?client%5Fsecret=abc", f"/v1/x?client%5Fsecret={MASK}"),
        ("/v1/x?accountNumber=0123456789", f"/v1/x?accountNumber={MASK}6789"),
        ("/v1/accounts/0123456789/x", f"/v1/accounts/{MASK}6789/x"),
        ("/v1/a%20b/c?d=%2F&e", "/v1/a%20b/c?d=%2F&e"),
        (f"/v1/x?note={quote_plus('card ' + VISA)}", f"/v1/x?note=card%20{MASK}"),
        ("/v1/x?data=%7B%22pin%22%3A%221%22%7D", f"/v1/x?data=%7B%22pin%22:%22{MASK}%22%7D"),
        ("/v1/x?data=%257B%2522pin%2522%253A%25221%2522%257D", f"/v1/x?data={MASK}"),
        (f"/v1/x?{VISA}", f"/v1/x?{MASK}"),
        ("", ""),
    ],
)
def test_a_target_is_masked_in_path_and_query(target, shown):
    assert REDACT.target(target) == shown


LEAKS = [
    # prose that begins like JSON
    "[fraud] card 4111 1111 1111 1111, password: hunter2",
    "[INFO] Authorization: Bearer hunter2",
    "{x} password: hunter2",
    # values with spaces and delimiters
    "password: hunter2 and hunter2",
    'data: {"password":"hunter2 & hunter2, hunter2"}',
    "password=ab;hunter2",
    'x {"password": ["hunter2", "hunter2"]}',
    'x {"password":             "hunter2"}',
    '\ufeff\ufeff{"password":"hunter2"}',
    # a name that is a value
    '{"key":"pin","value":"hunter2"}',
    '[{"value":"hunter2","name":"password"}]',
    '{"field":"otp","value":{"a":["hunter2"]}}',
    "<field name='password' value='hunter2'/>",
    "<field name='password'>hunter2</field>",
    '<input type="text" name="otp" value="hunter2">',
    # a name that begins with a lot else
    '{"' + "x" * 300 + 'password":"hunter2"}',
    # XML
    "<password><x>hunter2</x></password>",
    "<password><![CDATA[hunter2]]></password>",
    "<password><!-- x -->hunter2</password>",
    '<password a=">">hunter2</password>',
    "<password>hunter2",
    "xeyJ.a.eyJhbGciOiJIUzI1NiJ9.hunter2.hunter2",
    '<card pin="hunter2">x</card>',
    '<field name="clientSecret"><value>hunter2</value></field>',
    '<entry key="password">\n  <string>hunter2</string></entry>',
    # forms that do not say so
    "card[pin]=hunter2",
    "card%5Bpin%5D=hunter2",
    # not quite JSON
    '{ /* c */ "password":"hunter2"}',
    '{"a":1 "password":"hunter2"}',
    '{"a":1; "password":"hunter2"}',
    "{'password': 'ab,hunter2'}",
    '{"p\\x61ssword":"hunter2"}',
    # numbers in words
    "BVN 22123456789",
    "your OTP is 123456",
    "pin 1234",
    "2024 4111 1111 1111 1111",
    "0004111111111111111",
    "4111.1111.1111.1111",
    "4111\u00a01111\u00a01111\u00a01111",
    '{"n":4111111111111111.0}',
    '{"n":4111111111111111e0}',
    "+234 801 234 5678",
    "0801-234-5678",
    "(0801)2345678",
    '{"account":1234567890}',
    "22123456789",
    # encodings
    "aHVudGVyMiBwYXNzd29yZDogaHVudGVyMg==",
    "eyJwYXNzd29yZCI6\n ICJodW50ZXIyIn0=",
    "data:text/plain;base64,cGFzc3dvcmQ6IGh1bnRlcjI=",
    "cGluPTEyMzQ=",
    "Content-Disposition: form-data; name=pin\r\n\r\nhunter2\r\nhunter2\r\n--b",
    "Content-Disposition: form-data; name=pin\r\n\r\n\r\nhunter2\r\n--b",
]
LEAKS += [
    '{"message":"Bad request: \\"{\\\\\\"pin\\\\\\": \\\\\\"hunter2\\\\\\"}\\""}',
    '"{\\"pin\\":\\"hunter2\\"}"',
    json.dumps({"raw": json.dumps(json.dumps({"pin": "hunter2"}))}),
    'req={\\"pin\\":\\"hunter2\\"}',
    "_token=hunter2",
    "__RequestVerificationToken: hunter2",
    "2fa_token=hunter2",
    "mysql --password=hunter2",
    "java -Dpassword=hunter2",
    '{"args":["--pin","hunter2","--password=hunter2"]}',
    '["X-Api-Key","hunter2"]',
    "<_token>hunter2</_token>",
    '{"errors":[{"field":"pin","rejectedValue":"hunter2"}]}',
    '{"detail":[{"loc":["body","pin"],"input":"hunter2"}]}',
    '{"fieldName":"OTP","fieldValue":"hunter2"}',
    '{"type":"pin","value":"hunter2"}',
    '{"k":"Authorization","v":"hunter2"}',
    "<Field><Name>pin</Name><Value>hunter2</Value></Field>",
    '<input type="password" value="hunter2">',
    '<meta name="csrf-token" content="hunter2">',
    "&lt;password&gt;hunter2&lt;/password&gt;",
    "Key (token)=(hunter2) already exists.",
    "482913 is your OTP".replace("482913", "123456"),
    "Use 123456 as your OTP",
    "Your OTP for transfer is 123456",
    "Your verification code is 123456",
    "OTP: <b>123456</b>",
    "Wrong PIN hunter2",
    "password is hunter2",
    "client_secret 'hunter2' does not match",
    "Cookie: sid=a1; session=hunter2",
    '"token" => "hunter2"',
    json.dumps({"note": "Thanks \ud83d 08031234567", "pin": "hunter2 801"}),
]
INNOCENT = [
    '{"account":{"id":"a-1","balance":1000,"currency":"NGN"}}',
    '{"createdAt":"1705314030","resetAt":1705314030}',
    '{"amount":"250.00","currency":"NGN","sessionId":"892250562088340250530853231116"}',
    '{"id":"b365b8a4-912a-4c66-9028-834054c9bd9c","time":"2026-11-25T16:01:07.965100Z"}',
    '{"code":"00","description":"Success","data":{"results":[{"code":"058","name":"GTB"}]}}',
    '<div id="main"><p>Hello</p></div>',
    '<form name="pin"><p>Type it</p></form>',
    '<field name="pin"></field><field name="amount">5</field>',
    "at x (TokenService.java:123)",
    "http://localhost:8080/v1/x?limit=10&cursor=abc",
    'WWW-Authenticate: x="y"',
]


@pytest.mark.parametrize("text", INNOCENT)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert REDACT.text(text) == text


HIDDEN = ("hunter2", "4111", "22123456789", "123456", "1234567890", "801", "cGlu", "aHVu", "cGFz")


@pytest.mark.parametrize("text", LEAKS)
def test_what_others_found_stays_hidden(text):
    masked = REDACT.text(text)
    assert MASK in masked
    assert not [one for one in (*HIDDEN, "1234") if one in masked]


def test_paths_and_forms_name_secrets_too():
    assert REDACT.target("/v1/bvn/22123456789") == f"/v1/bvn/{MASK}"
    assert REDACT.target("/v1/otp/123456/x") == f"/v1/otp/{MASK}/x"
    assert "1234" not in REDACT.target("/x?p[0][name]=pin&p[0][value]=1234")
    assert "1234" not in REDACT.target("/x?%2570assword=1234")
    assert "hunter2" not in REDACT.target("http://user:hunter2@127.0.0.1/v1/x")


@pytest.mark.parametrize(
    "name",
    [
        *("otpcode", "OTPCODE", "bvnnumber", "usernin", "ninnumber", "pinnumber", "pinblock"),
        *("pin1", "otp2", "bvn1", "cardpin2", "PINs", "cvn", "cardNum", "card_num", "track2"),
        *("pass", "userpass", "accessKey", "encryptionKey", "authKey", "X-Auth", "sig", "hmac"),
        *("smsCode", "verifyCode", "passkey", "code_verifier", "macKey"),
        *("nombaSigValue", "X-Hub-Sig", "identityNumber", "verificationCode", "authCode", "ＰＩＮ"),
    ],
)
def test_further_names_that_others_found(name):
    assert REDACT.value(name, "x1y2z3") == MASK


SLOW = {
    "dotted": "a." * 32_000,
    "multipart": 'name="a"\n' * 7_000,
    "jwt": "eyJaaaa-" * 8_000,
    "jwt, dashes": "eyJ" + "a-" * 32_000,
    "letters": "x" * 65_000,
    "percent": "%" + "25" * 32_000 + "41",
    "open": "{" * 65_000,
    "lists": "[" * 65_000,
    "tags": "<a" * 32_000,
    "tag": "<a " * 21_000,
    "named": "pin=" * 16_000,
    "colons": "a:" * 32_000,
    "digits": "4" * 65_000,
    "grouped": "4 " * 32_000,
    "quotes": '"' * 65_000,
    "backslashes": '"' + "\\" * 65_000,
    "base64": "YWJj" * 16_000,
    "elements": "<password>" * 6_000,
    "equals": "=" * 65_000,
    "spaces": "pin" + " " * 65_000,
    "keys": "-----BEGIN PRIVATE KEY-----" * 2_000,
    "attributes": "<x " + 'a="b" ' * 10_000 + ">",
    "named values": "{" + '"value":1,"name":"pin",' * 24_000,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", SLOW)
def test_no_text_takes_long(kind):  # what is not linear takes minutes here
    text = SLOW[kind]
    REDACT.text(text)
    REDACT.json(text)
    REDACT.form(text)


def test_a_text_that_is_coded_in_many_ways_is_gone_through_a_few_times():
    """Once a way, not once for every order in which the ways may be gone."""

    def cost(text):
        costs = []
        for _ in range(3):
            began = time.process_time()
            assert REDACT.text(text) == text
            costs.append(time.process_time() - began)
        return min(costs)

    filler = "a=b " * 4000
    coded = "x " + "\\" * 3 + '" &lt; %2541 '
    assert cost(coded + filler) < 20 * cost("x " + filler)


def test_settings_extend_the_table():
    own = Redactor(secret=["meter-no"], partial=["wallet_id"], patterns=[r"INT-\d+"])
    assert own.value("meterNo", "x") == MASK
    assert own.value("Wallet-Id", "1234567890") == f"{MASK}7890"
    assert own.text("see INT-42.") == f"see {MASK}."
    assert own.is_secret(b"Meter-No")
    assert not REDACT.is_secret(b"Meter-No")
    assert REDACT.value("meterNo", "x") == "x"


def test_reveal_masks_nothing():
    bare = Redactor(reveal=True)
    text = json.dumps({"pin": "1234", "card": VISA})
    assert (bare.json(text), bare.text(text), bare.form("pin=1")) == (text, text, "pin=1")
    assert bare.value("pin", "1234") == "1234"
    assert bare.is_secret(b"Authorization")  # that is never captured


SECRET = "s3cr3tMARK"
NAMES = st.sampled_from(["pin", "cardPin", "cvv", "otp", "client_secret", "tokenKey", "bvn"])
PLAIN = st.text(string.ascii_letters + ' "\\\n{}[]:,é', max_size=12)
LEAVES = st.one_of(PLAIN, st.integers(0, 999), st.booleans(), st.none(), st.floats(-5, 5))
# Not `tel` or `iban`, of whose numbers the last digits are left, and not so when they are masked again.
KEYS = st.text(string.ascii_lowercase, min_size=1, max_size=4).filter(
    lambda name: REDACT.value(name, "12345678") in {"12345678", MASK}
)
DOCUMENTS = st.recursive(
    st.dictionaries(NAMES, st.just(SECRET), min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner | LEAVES),
        st.lists(inner | LEAVES, max_size=3),
    ),
    max_leaves=8,
)


@given(DOCUMENTS, st.sampled_from([None, 2]), st.booleans())
def test_no_document_lets_a_secret_through(document, indent, ascii_only):
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    masked = REDACT.json(text)
    assert SECRET not in masked
    json.loads(masked)
    assert REDACT.json(masked) == masked
    for cut in range(0, len(text), 7):
        assert SECRET not in REDACT.json(text[:cut])


def names_nothing_secret(leaf):
    """Else a text such as `otp:x`, or `pan` before another in a list, is a secret and its name."""
    words = re.findall(r"\w+", leaf) if isinstance(leaf, str) else ()
    return not any(REDACT.is_secret(word.encode()) for word in words)


@given(
    st.recursive(
        LEAVES.filter(names_nothing_secret),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abcdexyz", max_size=3), inner),
        max_leaves=10,
    )
)
def test_a_document_without_secrets_stays_as_it_is(document):
    text = json.dumps(document)
    if isinstance(document, dict | list):
        assert REDACT.json(text) == text


@given(st.lists(st.tuples(NAMES | st.just("a"), st.text(max_size=10)), max_size=5))
def test_no_form_lets_a_secret_through(pairs):
    text = "&".join(f"{quote_plus(name)}={quote(value + SECRET)}" for name, value in pairs)
    shown = parse_qsl(REDACT.form(text), keep_blank_values=True)
    assert [name for name, _ in shown] == [name for name, _ in pairs]
    assert not [1 for name, value in shown if name != "a" and SECRET in value]


@given(st.text(max_size=200))
def test_nothing_makes_it_fail(text):
    REDACT.text(text)
    REDACT.json(text)
    REDACT.form(text)
    REDACT.target(text)
