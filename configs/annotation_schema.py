"""Configuration of annotation and of the reward model: what the LLM is asked, by which service, and what becomes of it."""

from dataclasses import dataclass, field

from configs.fields import number, one_of


@dataclass(frozen=True)
class AnnotatorConfig:
    """What is asked, in which order, and how much at a time."""

    address: str = ""
    """host:port of a running annotation service, or several, separated by commas: each caption has its own of them and another only while
    that one is down. Empty starts a service with the run."""
    tls_ca: str = ""
    """PEM file of the CA that signed the certificate of the service at `address`, which is then asked by TLS; `system`: gRPC's own roots."""
    tls_cert: str = ""
    """PEM file of this client's certificate, for a service that wants one (mTLS)."""
    tls_key: str = ""
    """PEM file of the key to it."""
    token_file: str = ""
    """File of the token that the service at `address` wants; the token itself is never written down."""
    rubric: str = "nethack_progress"
    """Name of a built-in rubric or path of a rubric YAML."""
    batch_size: int = number(32, 1, 4096)
    """Captions per request."""
    max_in_flight: int = number(2, 1, 1024)
    """Requests outstanding at once."""
    max_captions: int = number(1_000_000, 16, 1e9)
    """Captions the book holds; the least recently seen are evicted (their texts stay in captions.sqlite)."""
    recency_half_life_env_steps: int = number(200_000, 1, 1e15)
    """A caption's priority is its count halved for each such span since it was last seen."""
    policy: str = one_of("recency_frequency", "frequency", "uncertainty")
    """What to ask next, the highest priority first. `recency_frequency`: n 0.5^(age / half-life) for a caption seen n times and last
    `age` steps ago; `frequency`: n; `uncertainty`: n 4 s(m) (1 - s(m)), s the logistic function and m the reward model's distance from its
    threshold: how many rewards are in doubt. Members of pairs are drawn with weights that are the square roots of these."""
    max_labels: int = number(0, 0, 1e12)
    """Answers the run may receive, cached ones included; 0 sets no limit."""
    max_labels_per_s: float = number(0.0, 0, 1e9)
    """Answers asked for per second at most in `local` and `connect`; 0 sets no limit. `inline` has labels_per_turn."""
    labels_per_turn: int = number(64, 1, 1e6)
    """Judgements asked for in one turn of `inline` mode."""
    pairs: str = one_of("pointwise", "compared")
    """Where preferences between captions come from (`ranking`): `compared`: the LLM compares both, which needs a rubric with a `pairs`
    section; `pointwise`: from single judgements p and q as p(first better) = s(logit p - logit q), which a small model does better."""
    pairs_per_caption: int = number(16, 1, 10_000)
    """Pairs made per caption of the book (compared: wanted; pointwise: drawn for each new label)."""
    max_pairs: int = number(200_000, 1, 1e7)
    """Pairs remembered at most, so that none comes twice; the oldest are forgotten."""
    request_timeout_s: float = number(120.0, 0.1, 3600)
    """Deadline of one request."""
    max_backoff_s: float = number(30.0, 0.1, 3600)
    """Longest wait between attempts while the service is down."""
    wait_for_first_table_s: float = number(0.0, 0, 86_400)
    """Seconds that the start of a run waits at most for the first reward table that knows a caption, in `local` and `connect`; 0 never waits.
    The first batch is held meanwhile, so its captions are what the table can know, and the workers collect what they may have in flight.
    `inline` asks before each update, and never waits."""
    must_answer: bool = True
    """Whether a run that reached its goal has failed (exit code 1) where the judge gave no answer that could be used, in all of its starts."""


@dataclass(frozen=True)
class ServiceConfig:
    """The annotation service, started by a run or by `delphi serve`."""

    engine: str = one_of("transformers", "vllm", "openai", "scripted", "none")
    """`transformers`, `vllm` (a vLLM server as a child), `openai` (an endpoint that speaks OpenAI's protocol), `scripted` (deterministic,
    for tests and debugging only) or `none` (embeds sentences and judges nothing)."""
    model: str = "smollm2"
    """`smollm2` (the packaged SmolLM2-135M-Instruct), a folder, or a Hugging Face id; with `openai`, the endpoint's name of it."""
    encoder: str = "minilm"
    """Sentence encoder behind `Embed`, loaded when first asked: `minilm` (the packaged all-MiniLM-L6-v2), a folder, or a Hugging Face id."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`."""
    dtype: str = one_of("auto", "bfloat16", "float32")
    """`bfloat16`, `float32`, or `auto`: float32 on a CPU, so that labels are the same on every processor (bfloat16 is 2.4 times as fast
    on one that computes in it, a fifth as fast on others, and moves probabilities by up to 0.014); on a GPU bfloat16 where a measurement
    at the start says that it is clearly faster. The service's log says what was chosen, and how fast bfloat16 would be."""
    batch_size: int = number(32, 1, 4096)
    """Items per forward pass."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = number(0, 0, 65_535)
    """Port to listen on; 0 takes a free one."""
    nice: int = number(10, 0, 19)
    """Scheduling niceness of a service that a run starts, 0 to 19, so that it yields to training; the first start of all loads its model at
    the run's own priority, because nothing can be paid before, and yields from then on. A kernel that shares the processor among
    sessions first (Linux with sched_autogroup_enabled) lets it count within the service's own session only."""
    torch_threads: int = number(1, 0, 1024)
    """Threads torch may use in the service; 0 leaves torch's own choice."""
    store: str = ""
    """SQLite file of judgements; empty takes judgements.sqlite in the user's cache directory, `memory` keeps none."""
    max_items_per_request: int = number(1024, 1, 1e6)
    """Requests with more items are refused."""
    max_item_bytes: int = number(4096, 256, 1e7)
    """Requests with a longer item are refused."""
    script: str = ""
    """Rules of the `scripted` engine, `regex=probability` separated by `;`; the first match wins, default probability 0.1."""
    script_delay_s: float = number(0.0, 0, 3600)
    """Seconds the `scripted` engine takes per item."""
    hang_timeout_s: float = number(60.0, 1, 86_400)
    """A service that a run starts is killed and started again where it has given no sign of life for so long since it first judged (fifteen
    times as long before: it imports and loads), or its own engine has been at one batch for ten times as long. A sign of life costs a
    millisecond, which takes seconds at most on a machine that is full at nice 10; a batch of 32 on one core shared in the same way, about
    five seconds for the packaged model and minutes for one of a few billion weights. `vllm` and `openai` have `engine_timeout_s` for a batch."""
    engine_timeout_s: float = number(60.0, 1, 3600)
    """Of `vllm` and `openai`: deadline of one answer, after which vLLM is taken to hang and is replaced, and an endpoint is given up. A third
    of it is one attempt's at an endpoint: a model that thinks before it answers may need more."""
    vllm_python: str = ""
    """Python of the environment that has vLLM; empty takes this one, or .venv-vllm's beside this one's environment."""
    tensor_parallel: int = number(1, 1, 1024)
    """GPUs that vLLM spreads the model over."""
    gpu_memory_utilization: float = number(0.8, 0.01, 1)
    """Share of a GPU's memory that vLLM takes; lower it where the learner trains on the same GPU."""
    max_model_len: int = number(0, 0, 1e7)
    """Tokens of the longest prompt that vLLM makes room for; 0 takes 4096, or less where the model reads less."""
    endpoint: str = ""
    """Base URL for the `openai` engine, for example http://127.0.0.1:8000/v1."""
    endpoint_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key; the key itself is never written down."""
    endpoint_concurrency: int = number(16, 1, 1024)
    """Requests to the endpoint at once."""


@dataclass(frozen=True)
class AccessConfig:
    """Who may use a service; the default is for this machine's own processes."""

    tls_cert: str = ""
    """PEM file of the service's certificate, its chain after it; with tls_key it speaks TLS and nothing else."""
    tls_key: str = ""
    """PEM file of the certificate's private key."""
    tls_client_ca: str = ""
    """PEM file of authorities one of which must have signed the client's certificate (mTLS); empty asks for none."""
    token_file: str = ""
    """File of a token that every call must carry as `authorization: Bearer ...`; empty asks for none."""
    max_requests: int = number(64, 1, 1e6)
    """Requests at once; more are turned away with RESOURCE_EXHAUSTED, and clients come back after a pause."""
    max_requests_per_s: float = number(0.0, 0, 1e6)
    """Requests per second at most, with a burst of one second's worth; 0 sets no limit."""
    insecure_listen_anywhere: bool = False
    """Allow an address that other machines reach without credentials."""


@dataclass(frozen=True)
class RewardModelConfig:
    """How answers become one number R per caption, and the options that any reward model takes."""

    name: str = "retrieval"
    """`retrieval` (the judge's own answers), `classification` (a network trained on them), `ranking` (one trained on preferences between
    captions), `embedding` (likeness to goal sentences, no LLM), `counts` (R = 1 for every non-empty caption) or `none` (extrinsic reward only)."""
    output: str = one_of("binary", "soft", "probability")
    """Of retrieval and classification, p being the judge's or the network's probability: `binary`: R = 1[p > threshold]; `soft`:
    R = max(0, p - threshold) / (1 - threshold); `probability`: R = p."""
    threshold: float = number(-1.0, -1, 0.999999)
    """Probability, or for `embedding` cosine, above which a caption is rewarded. -1 takes the rubric's theta (classification trained on
    `hard` labels: 0.5; embedding: 0.45 for sentences, 0.35 for bags of words)."""
    publish_interval_s: float = number(1.0, 0.01, 3600)
    """Seconds between reward tables in `local` and `connect`; `inline` publishes once per turn."""
    clip: float = number(1.0, 0, 1e6)
    """R is clipped to [-clip, clip], so that one reward.intrinsic_coefficient serves every model; 0 does not clip. Only `ranking` makes
    rewards beyond 1 (z-scores up to 4.4 were seen)."""
    warmup_labels: int = number(0, 0, 1e12)
    """No caption is rewarded before this many labels have come."""
    label_smoothing: float = number(0.0, 0, 0.999)
    """Of classification and ranking: what is trained on is drawn by this fraction towards knowing nothing: soft labels towards the
    threshold, hard ones and preferences towards 0.5."""
    permute: bool = False
    """A control: R is permuted among captions of similar frequency (bands of 4 neighbours), which keeps how much reward there is and how
    rare it is, and destroys what the judge meant. Fixed once drawn, and a function of `seed`."""
    judgements: str = ""
    """File written by `delphi annotate`: the model is trained on it before the policy is, and frozen (Motif); nothing is asked in the run.
    `ranking` takes the file's pairs, or where it has none makes them of its single judgements."""
    labels: str = one_of("soft", "hard")
    """What `classification` is trained on: `soft` (the judge's probabilities) or `hard` (1[p > theta], ONI's form)."""
    learning_rate: float = number(1e-3, 0, 10)
    """Adam's step size for classification and ranking (ONI: 1e-4, for a hundred times as many steps)."""
    weight_decay: float = number(0.0, 0, 10)
    """Decoupled weight decay of classification and ranking."""
    batch_size: int = number(64, 1, 65_536)
    """Examples per gradient step (ONI: 256)."""
    steps_per_turn: int = number(8, 1, 1e6)
    """Gradient steps per turn of `inline`, and at a time in `local` and `connect`."""
    training_share: float = number(0.25, 0.01, 1)
    """Share of the time that gradient training may take of one core in `local` and `connect`."""
    held_out_fraction: float = number(0.1, 0, 0.9)
    """Share of captions, chosen by a hash, whose answers are never trained on: they say when to stop and how good the model is. Only
    captions that come after the first 200 are held out, so that small vocabularies are learnt whole."""
    patience: int = number(10, 1, 1e6)
    """Training rests after so many evaluations (one every 25 steps) without a better held-out loss, until there is a tenth more answers."""
    epsilon: float = number(-0.5, -1e6, 1e6)
    """Of `ranking`, where epsilon_quantile is -1: the z-score above which a caption is rewarded (ONI)."""
    epsilon_quantile: float = number(-2.0, -2, 0.999999)
    """Of `ranking`: -2 rewards as many of the judged captions as the judge puts above its theta, the best of them (where captions were
    compared and not judged, Motif's quantile); a quantile in [0, 1) of the z-scores over the distinct captions is the threshold itself
    (Motif: 0.5); -1 takes `epsilon`."""
    embedding: str = one_of("sentences", "bag-of-words")
    """Of `embedding`: `sentences` (a sentence encoder in the annotation service) or `bag-of-words` (shared words; needs no service)."""
    goals: list[str] = field(default_factory=list)
    """Of `embedding`: what is striven for, as captions would put it, at most 64 sentences; empty takes the rubric's positive examples."""
    goal_once_per_episode: bool = False
    """Of `embedding`: each goal is paid for once per episode (after ELLM). A caption counts for its nearest goal alone: where that one was
    paid, it earns nothing, even if it lies near another."""
