"""Bad values and bad references, row by row: each with its line, what was expected, and what was found."""

from __future__ import annotations

import pytest

from tests.support.configs import config, edited, problems

SERVER = "server: {listen: 127.0.0.1:8080, admin: 127.0.0.1:9090}"
PRO = "pro: {label: Pro, price: 30, period: 30d, allowance: {tokens: 500000}}"
LAST = "default_plan: trial"


def server(text: str) -> str:
    return edited(SERVER, f"server: {{{text}}}")


def upstream(text: str) -> str:
    return edited('url: "https://api.anthropic.com"', text)


def pro(more: str, instead: str | None = None) -> str:
    """BASE whose plan ``pro`` has more keys, or has one piece replaced by another."""
    if instead is None:
        return edited(PRO, PRO[:-1] + f", {more}}}")
    return edited(PRO, PRO.replace(more, instead))


def and_also(text: str) -> str:
    return edited(LAST, f"{LAST}\n{text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # around the allowance
        (pro("overage: {credits: {cap: 1}}"), "17: plans.pro.overage.credits: expected meters: one of tokens"),
        (pro("overage: {tokens: {cap: 0.0001}}"), "17: plans.pro.overage.tokens.cap: expected an amount of tokens wit"),
        (pro("overage: {tokens: {price: 1}}"), "17: plans.pro.overage.tokens.cap: expected a value, found nothing"),
        (pro("rollover: {credits: {max: 1}}"), "17: plans.pro.rollover.credits: expected a wallet of the allowance: o"),
        (pro("rollover: {tokens: {max: 120%}}"), "17: plans.pro.rollover.tokens.max: expected a share such as 0.9"),
        (
            edited(PRO, PRO[:-1].replace("30d", "once") + ", rollover: {tokens: {}}}"),
            "17: plans.pro.rollover: expected none: period once never ends",
        ),
        (pro("prepay: {periods: 12, discount: 20%}"), "17: plans.pro.prepay: expected renews: when_paid, because"),
        # unknown keys, with the line and a suggestion
        (edited(LAST, f"{LAST}\nplanz: {{}}"), "19: planz: expected one of alerts, currency, default_feature,"),
        (edited(LAST, f"{LAST}\nplanz: {{}}"), "(did you mean plans?), found 'planz'"),
        (server("lissten: x"), "2: server.lissten: expected one of admin,"),
        (
            pro("limits: {user: {uses: {max: 5, pr: 60s}}}"),
            "17: plans.pro.limits.user.uses.pr: expected one of max, per (did",
        ),
        (
            edited("decimals: 3", "decimals: 3, nmae: x"),
            "7: meters.tokens.nmae: expected one of decimals, name, tokens_per_unit (did",
        ),
        (edited("rates: [default]", "rate: [default]"), "11: models.0.rate: expected one of as, ids, match,"),
        (
            edited("price: rates", "price: {per_use: 1, bulk: [{form: 10, per_use: 2}]}"),
            "13: features.general.price.bulk.0.form: expected one of from",
        ),
        (
            and_also("messages: {limit_exceeded: {txt: a}}"),
            "19: messages.limit_exceeded.txt: expected one of text, title (did",
        ),
        # missing keys
        (edited(f"{LAST}\n", ""), "1: default_plan: expected a value, found nothing"),
        (pro("period: 30d, ", ""), "17: plans.pro.period: expected a value, found nothing"),
        # versions
        (edited("version: 1", "version: 2"), "1: version: expected 1, found '2'"),
        # durations and sizes carry their unit; nothing is negative
        (server("lease: 30"), "2: server.lease: expected a duration such as 30s, 5m, 24h or 7d, found '30'"),
        (server("lease: -5s"), "2: server.lease: expected a duration such as 30s, 5m, 24h or 7d, found '-5s'"),
        (server("lease: 0s"), "2: server.lease: expected a duration of at least 1s and at most 100 years, found '0s'"),
        (server("body_max: 32"), "2: server.body_max: expected a size from 1KB to 1GB, such as 32MB, found '32'"),
        (
            pro("period: 30d", "period: 30"),
            "17: plans.pro.period: expected month, year, once or a duration such as 30d",
        ),
        (pro("price: 30", "price: -1"), "17: plans.pro.price: expected a price, 0 or more, or custom, found '-1'"),
        (pro("price: 30", "price: free"), "17: plans.pro.price: expected a price, 0 or more, or custom, found 'free'"),
        (pro("price: 30", "price: .nan"), "17: plans.pro.price: expected a price, 0 or more, or custom, found '.nan'"),
        (pro("price: 30", "price: 1e3"), "17: plans.pro.price: expected a price, 0 or more, or custom, found '1e3'"),
        (edited("input: 1,", "input: -1,"), "9: rates.default.input: expected a number, 0 or more, found '-1'"),
        (edited("input: 1,", "per: 0, input: 1,"), "9: rates.default.per: expected a whole number from 1 to"),
        # amounts are exact in their meter
        (
            pro("tokens: 500000", "tokens: 0.0001"),
            "17: plans.pro.allowance.tokens: expected an amount of tokens with at most 3 decimals",
        ),
        (
            pro("tokens: 500000", "tokens: -5"),
            "17: plans.pro.allowance.tokens: expected an amount, 0 or more, or unlimited, or custom",
        ),
        (
            pro("tokens: 500000", "tokens: 9007199254740"),
            "17: plans.pro.allowance.tokens: expected less than 2251799813685.248 tokens, or",
        ),
        (
            pro("tokens: 500000", "tokens: lots"),
            "17: plans.pro.allowance.tokens: expected an amount, 0 or more, or unlimited",
        ),
        (
            edited("price: rates", "price: {per_use: 0.00001}"),
            "13: features.general.price.per_use: expected an amount of tokens with",
        ),
        # workers, addresses, flags, clamps
        (server("workers: 0"), "2: server.workers: expected auto or a whole number from 1 to 256, found '0'"),
        (server("workers: 1.5"), "2: server.workers: expected auto or a whole number from 1 to 256, found '1.5'"),
        (server("listen: '8080'"), "2: server.listen: expected an address as HOST:PORT, such as 127.0.0.1:8080"),
        (server("listen: 127.0.0.1:99999"), "2: server.listen: expected an address as HOST:PORT"),
        (server("listen: '::1:8080'"), "2: server.listen: expected an address as HOST:PORT"),
        (
            server("listen: 127.0.0.1:8080, admin: 127.0.0.1:8080"),
            "2: server.admin: expected another address than server.listen",
        ),
        (
            upstream("url: 'https://a.b', insecure: maybe"),
            "5: upstreams.anthropic.insecure: expected true or false, found 'maybe'",
        ),
        (pro("clamp: true"), "17: plans.pro.clamp: expected false or a floor of at least 1 output token, found true"),
        (pro("clamp: 0"), "17: plans.pro.clamp: expected false or a floor of at least 1 output token, found '0'"),
        (
            pro("limits: {account: {concurrent: 0}}"),
            "17: plans.pro.limits.account.concurrent: expected a whole number from 1",
        ),
        # alternatives
        (pro("on_disconnect: hang"), "17: plans.pro.on_disconnect: expected drain or cut, found 'hang'"),
        (pro("renews: monthly"), "17: plans.pro.renews: expected by_itself, when_paid or never, found 'monthly'"),
        (
            edited("dialect: anthropic", "dialect: gemini"),
            "5: upstreams.anthropic.dialect: expected anthropic or openai, found 'gemini'",
        ),
        (and_also("refusals: {quota_status: 403}"), "19: refusals.quota_status: expected 429 or 402, found '403'"),
        (
            edited("price: rates", "price: {per_use: 1, per_1k_tokens: 1}"),
            "13: features.general.price: expected rates, {per_use: N, bulk",
        ),
        (
            edited("price: rates", "price: {per_use: 1, minimum: 1}"),
            "13: features.general.price: expected rates, {per_use: N",
        ),
        (edited("price: rates", "price: card"), "13: features.general.price: expected rates, {per_use: N"),
        (
            pro("time_zone: Europe/Atlantis"),
            "17: plans.pro.time_zone: expected an IANA time zone such as Europe/Berlin",
        ),
        (
            pro("time_zone: ../../etc/passwd"),
            "17: plans.pro.time_zone: expected an IANA time zone such as Europe/Berlin",
        ),
        (and_also("currency: USD"), "19: currency: expected a currency such as usd or eur, found 'USD'"),
        (and_also("alerts: {warn_at: [90]}"), "19: alerts.warn_at.0: expected a share such as 0.9 or 90%"),
        (
            and_also("alerts: {webhook: {url: 'https://a.b'}}"),
            "19: alerts.webhook.secret: expected a secret of at least 16 characters (or whsec_ and base64), because",
        ),
        (
            and_also('alerts: {webhook: {url: "https://a.b", secret: "${S:-whsec_no-base64-at-all}"}}'),
            "19: alerts.webhook.secret: expected a secret of at least 16 characters (or whsec_ and base64), because",
        ),
        (
            and_also("alerts: {email: {smtp: 'http://m', from: a@b.c}}"),
            "19: alerts.email.smtp: expected smtp://USER:PASSWORD@HOST:587 or smtps://USER:PASSWORD@HOST, found",
        ),
        (
            and_also("alerts: {email: {smtp: 'smtp://m', from: 'a@b.c, d@e.f'}}"),
            "19: alerts.email.from: expected an e-mail address such as billing@example.com, found 'a@b.c, d@e.f'",
        ),
        (and_also("alerts: {spike: {factor: 0.5, over: 7d}}"), "19: alerts.spike.factor: expected a factor of at"),
        (and_also("alerts: {rapid_use: {uses: 0, per: 7d}}"), "19: alerts.rapid_use.uses: expected a whole number"),
        # the wrong shape
        (edited("plans:", "plans: 5\nx:"), "15: plans: expected a mapping, found '5'"),
        (edited("[default]", "default"), "11: models.0.rates: expected a list, found 'default'"),
        (
            edited("upstreams: [anthropic]", "upstreams: []"),
            "11: models.0.upstreams: expected at least one entry, found a list",
        ),
        (edited("label: Trial", "label: [a]"), "16: plans.trial.label: expected a text, found a list"),
        (
            edited("  general:", "  'gen eral':"),
            "13: features.gen eral: expected a name of letters, digits, '_', '.' or '-', found 'gen eral'",
        ),
    ],
)
def test_a_bad_value_is_told_with_line_path_expected_and_found(text: str, expected: str) -> None:
    told = problems(text)
    assert any(f"config.yaml:{expected}" in problem or expected in problem for problem in told), told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # names that nothing has
        (
            edited("upstreams: [anthropic]", "upstreams: [antropic]"),
            "11: models.0.upstreams.0: expected upstreams: one of anthropic (did you mean",
        ),
        (
            edited("rates: [default]", "rates: [defualt]"),
            "11: models.0.rates.0: expected rates: one of default (did you mean default?), found 'def",
        ),
        (
            edited("meter: tokens", "meter: token"),
            "9: rates.default.meter: expected meters: one of tokens (did you mean tokens?)",
        ),
        (
            edited("wallet: tokens", "wallet: credits"),
            "13: features.general.wallet: expected meters: one of tokens, found 'credits'",
        ),
        (
            edited("default_feature: general", "default_feature: genral"),
            "14: default_feature: expected features: one of general (did you",
        ),
        (
            edited("default_plan: trial", "default_plan: tiral"),
            "18: default_plan: expected plans: one of pro, trial (did you mean trial?)",
        ),
        (
            pro("tokens: 500000", "credits: 5"),
            "17: plans.pro.allowance.credits: expected meters: one of tokens, found 'credits'",
        ),
        (
            pro("features: [generel]"),
            "17: plans.pro.features.0: expected features: one of general (did you mean general?)",
        ),
        (pro("models: [gpt-5]"), "17: plans.pro.models.0: expected a model: one of claude-*, claude-a, found 'gpt-5'"),
        (
            pro("ends: tiral"),
            "17: plans.pro.ends: expected plans: one of block, pro, trial (did you mean trial?), found 'tiral'",
        ),
        (and_also("messages: {limit_exeeded: x}"), "19: messages.limit_exeeded: expected a reason: one of"),
        (
            and_also('messages: {limit_exceeded: "{balance} left"}'),
            "19: messages.limit_exceeded: expected a field: one of available,",
        ),
        (
            and_also('messages: {limit_exceeded: "{available left"}'),
            "19: messages.limit_exceeded: expected every brace to enclose a field",
        ),
        # prices that would be missing at run time
        (
            edited("rates: [default]", "rates: []"),
            "11: models.0.rates: expected a card in tokens (plan trial reaches the model with feature general)",
        ),
        (
            edited("decimals: 3}", "decimals: 3}\n  usd: {decimals: 9}", "meter: tokens", "meter: usd"),
            "12: models.0.rates: expected a card in tokens (plan trial reaches the model with",
        ),
        (
            edited(
                "input: 1, output: 1}",
                "input: 1, output: 1}\n  b: {meter: tokens, input: 2, output: 2}",
                "[default]",
                "[default, b]",
            ),
            "12: models.0.rates.1: expected at most one card in tokens, found 'b'",
        ),
        # plans that follow by themselves
        (pro("ends: pro"), "17: plans.pro.ends: expected a plan that does not lead back here (pro → pro), found 'pro'"),
        (
            edited("renews: never", "renews: never, ends: pro", PRO, PRO[:-1] + ", renews: never, ends: trial}"),
            "16: plans.trial.ends: expected a plan that does not lead back here (trial → pro → trial), found 'pro'",
        ),
        (
            edited("renews: never", "renews: never, ends: pro", PRO, PRO[:-1] + ", renews: when_paid}"),
            "16: plans.trial.ends: expected a plan that needs no payment (renews: by_itself or never)",
        ),
        (
            edited(LAST, "default_plan: pro", PRO, PRO.replace("500000", "custom")),
            "18: default_plan: expected a plan without custom terms, found 'pro'",
        ),
        (
            pro("period: 30d", "period: once, renews: when_paid"),
            "17: plans.pro.renews: expected by_itself or never: period once has no",
        ),
        (
            edited("  pro: {", "  block: {"),
            "17: plans.block: expected another name: block is what ends says, found 'block'",
        ),
        # models that shadow each other
        (
            edited("[claude-a]", "[gpt-5]"),
            "11: models.0.ids.0: expected a name that models.0.match fits, found 'gpt-5'",
        ),
        (
            edited("[claude-a]", "['claude-*']"),
            "11: models.0.ids.0: expected a model name without wildcards, found 'claude-*'",
        ),
        (
            edited("output_default: 99", "output_default: 9999"),
            "11: models.0.output_default: expected at most output_max (6400)",
        ),
        (
            edited("[claude-a]", "[claude-a], as: 'claude-*'"),
            "11: models.0.as: expected a model name without wildcards",
        ),
        # the network
        (
            upstream('url: "http://models.example.com"'),
            "5: upstreams.anthropic.url: expected https://, or insecure: true for a model",
        ),
        (
            upstream('url: "http://127.0.0.1.evil.com"'),
            "5: upstreams.anthropic.url: expected https://, or insecure: true",
        ),
        (
            upstream('url: "http://localhost@evil.com"'),
            "5: upstreams.anthropic.url: expected a URL such as https://api.example.com/v1",
        ),
        (upstream('url: "ftp://a.b"'), "5: upstreams.anthropic.url: expected a URL such as https://api.example.com/v1"),
        (upstream('url: "https://a.b/v1?key=1"'), "5: upstreams.anthropic.url: expected a URL such as"),
        (
            server("admin: 0.0.0.0:9090"),
            "2: server.admin_token: expected a token, because server.admin is not a loopback address, found",
        ),
        (
            edited("database: embedded", "database: postgresql://db/t"),
            "2: server.secret: expected a secret, because several gateways",
        ),
        (
            edited("database: embedded", "database: mysql://db/t"),
            "3: storage.database: expected embedded, sqlite:///FILE or postgresql://",
        ),
        (
            edited("redis: embedded", "redis: memcached://x"),
            "3: storage.redis: expected embedded, redis://HOST:PORT, rediss://HOST:PORT or",
        ),
        (
            edited("redis: embedded", "redis: redis+cluster://a"),
            "3: storage.redis: expected embedded, redis://HOST:PORT, rediss://",
        ),
        (
            and_also("services: {sms: {wallet: tokens, per: message, price: 1, increment: 1s}}"),
            "19: services.sms.increment: expected no such key: only what is priced per second, minute or hour has one",
        ),
        (
            and_also("services: {general: {wallet: tokens, per: message, price: 1}}"),
            "19: services.general: expected another name: a feature has this one",
        ),
        (
            and_also("services: {sms: {wallet: tokens, per: message, price: 1, minimum_balance: 0.0001}}"),
            "19: services.sms.minimum_balance: expected an amount of tokens with at most 3 decimals",
        ),
        # payments: both secrets or none, and prices that can be paid
        (
            and_also('stripe: {secret_key: "${K:-sk_test_1}", success_url: "https://a.b"}'),
            "19: stripe.webhook_secret: expected a secret, because payments are only",
        ),
        (and_also("stripe: {}"), "19: stripe.secret_key: expected a secret key, because Checkout is opened with it"),
        (
            and_also('stripe: {secret_key: "${K:-}", webhook_secret: "${W:-whsec_1}", success_url: "https://a.b"}'),
            "19: stripe.secret_key: expected a secret key",
        ),
        (
            and_also('stripe: {secret_key: "${K:-pk_test_1}", webhook_secret: "${W:-w}", success_url: "https://a.b"}'),
            "19: stripe.secret_key: expected Stripe's secret key (sk_test_… or sk_live_…), found something else",
        ),
        (
            and_also('stripe: {secret_key: "${K:-sk_test_1}", webhook_secret: "${W:-w}"}'),
            "19: stripe.success_url: expected a URL, because Checkout sends customers there, found nothing",
        ),
        (
            and_also(
                'stripe: {secret_key: "${K:-sk_test_1}", webhook_secret: "${W:-w}", success_url: "https://a.b",'
                ' url: "http://a.b"}'
            ),
            "19: stripe.url: expected https://, found 'http://a.b'",
        ),
        (pro("price: 30", "price: 30.005"), "17: plans.pro.price: expected a price in usd with at most 2 decimals"),
        (
            and_also("currency: jpy\npackages: {p: {label: P, price: 1.5, grants: [{wallet: tokens, amount: 1}]}}"),
            "20: packages.p.price: expected a price in jpy with no decimals, found '1.5'",
        ),
        (
            pro("stripe_price: price_1, renews: when_paid") + "packages:\n"
            "  p: {label: P, price: 1, stripe_price: price_1, grants: [{wallet: tokens, amount: 1}]}\n",
            "20: packages.p.stripe_price: expected a price of its own (plans.pro has the same), found 'price_1'",
        ),
        (pro("stripe_price: price_1"), "17: plans.pro.renews: expected when_paid, because its payments grant its"),
    ],
)
def test_what_one_section_says_about_another_is_checked(text: str, expected: str) -> None:
    told = problems(text)
    assert any(problem.startswith(f"config.yaml:{expected}") for problem in told), told


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    """Of the schema, between sections, and of what does not validate: its name still counts as known."""
    told = problems(
        edited(
            "listen: 127.0.0.1:8080",
            "listen: nowhere",
            "decimals: 3",
            "decimals: many",
            "upstreams: [anthropic]",
            "upstreams: [other]",
            LAST,
            "default_plan: nobody\nunknown: 1",
        )
    )
    assert [problem.split(": ")[0] + ": " + problem.split(": ")[1] for problem in told] == [
        "config.yaml:2: server.listen",
        "config.yaml:7: meters.tokens.decimals",
        "config.yaml:11: models.0.upstreams.0",
        "config.yaml:18: default_plan",
        "config.yaml:19: unknown",
    ]


def test_a_broken_entry_causes_no_second_problem() -> None:
    assert len(problems(edited("price: rates", "price: nothing"))) == 1
    assert len(problems(edited("input: 1,", "input: x,"))) == 1
    assert len(problems(edited('match: "claude-*"', "match: ''"))) == 1
    assert len(problems(pro("price: 30", "price: x"))) == 1


def test_very_many_problems_are_cut() -> None:
    plans = "\n".join(f"  p{n}: {{label: x, price: 0, period: x, allowance: {{}}}}" for n in range(300))
    told = problems(edited("plans:", f"plans:\n{plans}"))
    assert len(told) == 101
    assert told[-1] == "config.yaml: and 200 more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (pro("hold: learned"), "plans.pro.hold: expected worst_case: learned is not supported yet, found 'learned'"),
        (pro("outage: lease"), "plans.pro.outage: expected closed: lease is not supported yet"),
        (
            pro("on_exhausted: error"),
            "plans.pro.on_exhausted: expected stop: with worst-case holds no stream is ended by the quota, so error is "
            "not supported yet",
        ),
    ],
)
def test_a_key_that_is_not_supported_yet_says_so_when_it_is_used(text: str, said: str) -> None:
    told = problems(text)
    assert len(told) == 1
    assert said in told[0]


@pytest.mark.parametrize(
    "text",
    [
        pro("hold: worst_case, outage: closed, debt: forgive, overage: null, rollover: false, shadow: false"),
        and_also("services: {}\npackages: {}"),
        and_also('alerts: {webhook: {url: "${U:-}", secret: "${S:-}"}, email: {smtp: "${M:-}", from: a@b.c}}'),
        and_also("alerts: {webhook: null, email: null, rapid_use: null, spike: null, refused: false}"),
        # a plan that is not reached by a price needs no card
        edited("price: rates", "price: {per_use: 1}", "rates: [default]", "rates: []"),
        edited(
            "rates: [default]", "rates: []", "7d, renews", "7d, features: [], renews", PRO, PRO[:-1] + ", models: []}"
        ),
        # plans that come to rest
        edited("renews: never", "renews: never, ends: pro", PRO, PRO[:-1] + ", ends: trial}"),
        # the networks that are fine
        upstream('url: "http://127.0.0.1:9999/v1/"'),
        upstream('url: "http://[::1]:9999"'),
        upstream('url: "http://localhost"'),
        upstream('url: "http://models.internal:8000", insecure: true'),
        server('admin: 0.0.0.0:9090, admin_token: "${T:-x}"'),
        server("listen: '[::]:8080'"),
        server("lease: 1s"),  # shorter than a stream: a live call renews it
        edited("redis: embedded", "redis: 'redis+cluster://a:7000,b:7001'"),
    ],
)
def test_what_is_off_or_fine_loads(text: str) -> None:
    assert config(text).catalog.default_plan == "trial"
