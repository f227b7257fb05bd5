"""Configuration of annotation and of the reward model: what the LLM is asked, where, and how answers become rewards."""

from dataclasses import dataclass, field

from configs.fields import number, one_of


@dataclass(frozen=True)
class AnnotatorConfig:
    """What is asked, in which order, and how much at a time."""

    address: str = ""
    """host:port of a running annotation service, or several, separated by commas: each caption is assigned to one of
    them, and goes to another only while that one is down. Empty starts a service with the run."""
    tls_ca: str = ""
    """PEM file of the CA that signed the certificate of `address`; enables TLS. `system`: gRPC's default roots."""
    tls_cert: str = ""
    """PEM file of this client's certificate, for a service that requires one (mTLS)."""
    tls_key: str = ""
    """PEM file of the private key of tls_cert."""
    token_file: str = ""
    """File with the token that the service at `address` requires; the token itself is never written down."""
    rubric: str = "nethack_progress"
    """Name of a built-in rubric or path of a rubric YAML file."""
    batch_size: int = number(32, 1, 4096)
    """Captions per request."""
    max_in_flight: int = number(2, 1, 1024)
    """Concurrent requests."""
    max_captions: int = number(1_000_000, 16, 1e9)
    """Size of each term's caption book; the least recently seen are evicted (their texts stay in captions.sqlite)."""
    recency_half_life_env_steps: int = number(200_000, 1, 1e15)
    """A caption's priority is its count, halved for each such span since it was last seen."""
    policy: str = one_of("recency_frequency", "frequency", "uncertainty", "disagreement")
    """Order of annotation, highest priority first. `recency_frequency`: n 0.5^(age / half-life) for a caption seen n
    times and last `age` steps ago; `frequency`: n; `uncertainty`: n 4 s(m) (1 - s(m)), with s the logistic function and
    m the reward model's distance from its threshold: how many rewards are in doubt; `disagreement`: n d, with d the
    standard deviation of the networks of `robust.ensemble`. Members of pairs are drawn with weights that are the square
    roots of these."""
    max_labels: int = number(0, 0, 1e12)
    """Maximum answers that the run receives, cached ones included; 0 sets no limit."""
    max_labels_per_s: float = number(0.0, 0, 1e9)
    """Maximum answers requested per second in `local` and `connect`, for all terms together; 0 sets no limit. `inline`
    has labels_per_turn."""
    labels_per_turn: int = number(64, 1, 1e6)
    """Judgements requested in one turn of `inline` mode, for each term."""
    pairs: str = one_of("pointwise", "compared")
    """Source of preferences between captions (`ranking`): `compared`: the LLM compares the two, which needs a rubric
    with a `pairs` section; `pointwise`: computed from single judgements p and q as p(first better) = s(logit p - logit
    q), which is more reliable with a small model."""
    pairs_per_caption: int = number(16, 1, 10_000)
    """Pairs made per caption of the book (compared: target; pointwise: drawn for each new label)."""
    max_pairs: int = number(200_000, 1, 1e7)
    """Maximum remembered pairs, so that no pair repeats; the oldest are forgotten."""
    request_timeout_s: float = number(120.0, 0.1, 3600)
    """Deadline of one request."""
    max_backoff_s: float = number(30.0, 0.1, 3600)
    """Longest wait between attempts while the service is down."""
    wait_for_first_table_s: float = number(0.0, 0, 86_400)
    """Maximum seconds that the start of a run waits for the first reward table with a known caption, in `local` and
    `connect`; 0 does not wait. The first batch is held meanwhile, so the table can know its captions, and the workers
    collect as many rollouts as may be in flight. `inline` asks before each update, and never waits."""
    must_answer: bool = True
    """Whether a run that finishes fails (exit code 1) if the judge gave no usable answer in any of its starts."""


@dataclass(frozen=True)
class ServiceConfig:
    """The annotation service, started by a run or by `delphi serve`."""

    engine: str = one_of("transformers", "vllm", "openai", "scripted", "none")
    """`transformers`, `vllm` (a vLLM server as a child process), `openai` (an endpoint with OpenAI's protocol),
    `scripted` (deterministic, for tests and debugging only) or `none` (embeds sentences, judges nothing)."""
    model: str = "smollm2"
    """`smollm2` (the packaged SmolLM2-135M-Instruct), a folder, or a Hugging Face id; with `openai`, its name there."""
    encoder: str = "minilm"
    """Sentence encoder of `Embed`: `minilm` (the packaged all-MiniLM-L6-v2), a folder, or a Hugging Face id."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`."""
    dtype: str = one_of("auto", "bfloat16", "float32")
    """`bfloat16`, `float32`, or `auto`. On a CPU, `auto` is float32, so that labels are the same on every processor
    (bfloat16 is 2.4 times as fast on a processor with native support, a fifth as fast on others, and moves
    probabilities by up to 0.014); on a GPU it is bfloat16 if a measurement at the start shows that it is clearly
    faster. The service logs the choice and the measured speed of bfloat16."""
    batch_size: int = number(32, 1, 4096)
    """Items per forward pass."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = number(0, 0, 65_535)
    """Port to listen on; 0 picks a free one."""
    nice: int = number(10, 0, 19)
    """Scheduling niceness of a service that a run starts, 0 to 19, so that training has priority. The first start and
    the first restart load the model at the run's own priority, because nothing can be judged before; then it is
    lowered. Later restarts take no time from training, and last minutes on a fully loaded machine. On a kernel that
    divides the processor among sessions first (Linux with sched_autogroup_enabled) it has effect only within the
    service's own session."""
    torch_threads: int = number(1, 0, 1024)
    """Threads that torch may use in the service; 0 keeps torch's default."""
    store: str = ""
    """SQLite file of judgements; empty uses judgements.sqlite in the user's cache directory, `memory` keeps none."""
    max_items_per_request: int = number(1024, 1, 1e6)
    """Requests with more items are refused."""
    max_item_bytes: int = number(4096, 256, 1e7)
    """Requests with a longer item are refused."""
    script: str = ""
    """Rules of the `scripted` engine, `regex=probability` separated by `;`; the first match applies, default 0.1."""
    script_writings: str = ""
    """File of what the `scripted` engine writes: JSON lines {brief: ID, matches: regex on the fields, texts: [...]};
    the first line that matches gives its texts in turn."""
    script_delay_s: float = number(0.0, 0, 3600)
    """Seconds the `scripted` engine takes per item."""
    hang_timeout_s: float = number(60.0, 1, 86_400)
    """A service that a run starts is killed and restarted if it fails its liveness probe for this long after its first
    judgement (fifteen times as long before: it imports and loads), or if its own engine has worked on one batch for ten
    times as long. A probe takes a millisecond, and at most seconds on a fully loaded machine at nice 10; a batch of 32
    on one core under such load takes about five seconds with the packaged model, and minutes with a few billion
    weights. For a batch of `vllm` and `openai`, see `engine_timeout_s`."""
    engine_timeout_s: float = number(60.0, 1, 3600)
    """For `vllm` and `openai`: deadline of one answer; then vLLM is considered hung and replaced, and a request to an
    endpoint fails. An attempt at an endpoint may take a third: a model that reasons first may need more."""
    vllm_python: str = ""
    """Python of an environment with vLLM; empty uses this one, or that of .venv-vllm beside this environment."""
    tensor_parallel: int = number(1, 1, 1024)
    """GPUs over which vLLM distributes the model."""
    gpu_memory_utilization: float = number(0.8, 0.01, 1)
    """Fraction of a GPU's memory that vLLM uses; lower it if the learner trains on the same GPU."""
    max_model_len: int = number(0, 0, 1e7)
    """Longest prompt that vLLM allocates memory for, in tokens; 0 uses 4096, or the model's maximum if shorter."""
    endpoint: str = ""
    """Base URL for the `openai` engine, for example http://127.0.0.1:8000/v1."""
    endpoint_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key; the key itself is never written down."""
    endpoint_concurrency: int = number(16, 1, 1024)
    """Concurrent requests to the endpoint."""


@dataclass(frozen=True)
class AccessConfig:
    """Who may use a service; by default only processes of this machine."""

    tls_cert: str = ""
    """PEM file of the service's certificate, followed by its chain; with tls_key the service accepts TLS only."""
    tls_key: str = ""
    """PEM file of the certificate's private key."""
    tls_client_ca: str = ""
    """PEM file of authorities, one of which must have signed the client's certificate (mTLS); empty requires none."""
    token_file: str = ""
    """File with a token that every call must carry as `authorization: Bearer ...`; empty requires none."""
    max_requests: int = number(64, 1, 1e6)
    """Concurrent requests; more are rejected with RESOURCE_EXHAUSTED, and clients retry after a pause."""
    max_requests_per_s: float = number(0.0, 0, 1e6)
    """Maximum requests per second, with a burst of one second's worth; 0 sets no limit."""
    insecure_listen_anywhere: bool = False
    """Allow an address that other machines can reach without credentials."""


@dataclass(frozen=True)
class RewardModelConfig:
    """How answers become one number R per caption, and the settings that apply to several reward models."""

    name: str = "retrieval"
    """`retrieval` (the judge's own answers), `classification` (a network trained on them), `ranking` (a network trained
    on preferences between captions), `embedding` (similarity to goal sentences, no LLM), `counts` (R = 1 for every
    non-empty caption) or `none` (extrinsic reward only)."""
    output: str = one_of("binary", "soft", "probability")
    """For retrieval and classification, with p the judge's or the network's probability: `binary`: R = 1[p >
    threshold]; `soft`: R = max(0, p - threshold) / (1 - threshold); `probability`: R = p."""
    threshold: float = number(-1.0, -1, 0.999999)
    """Probability, or for `embedding` cosine, above which a caption is rewarded. -1 uses the rubric's theta
    (classification trained on `hard` labels: 0.5; embedding: 0.45 for sentences, 0.35 for bags of words)."""
    publish_interval_s: float = number(1.0, 0.01, 3600)
    """Seconds between reward tables in `local` and `connect`; `inline` publishes once per turn."""
    clip: float = number(1.0, 0, 1e6)
    """R is clipped to [-clip, clip], so that one reward.intrinsic_coefficient suits every model; 0 does not clip. Only
    `ranking` produces rewards beyond 1 (z-scores up to 4.4 were seen)."""
    warmup_labels: int = number(0, 0, 1e12)
    """No caption is rewarded before this many labels have been received."""
    label_smoothing: float = number(0.0, 0, 0.999)
    """For classification and ranking: fraction by which training targets are moved towards uncertainty: soft labels
    towards the threshold, hard labels and preferences towards 0.5."""
    permute: bool = False
    """Control experiment: R is permuted among captions of similar frequency (bands of 4 neighbours), which preserves
    how much reward there is and how rare it is, and removes the judge's meaning. The permutation is a function of
    `seed` and stays fixed once drawn."""
    judgements: str = ""
    """File written by `delphi annotate`: the model is trained on it before the policy, and then frozen (Motif); the run
    asks nothing. `ranking` uses the file's pairs, or makes pairs of its single judgements if it has none."""
    labels: str = one_of("soft", "hard")
    """Training targets of `classification`: `soft` (the judge's probabilities) or `hard` (1[p > theta], as ONI)."""
    learning_rate: float = number(1e-3, 0, 10)
    """Adam's step size for classification and ranking (ONI: 1e-4, for a hundred times as many steps)."""
    weight_decay: float = number(0.0, 0, 10)
    """Decoupled weight decay of classification and ranking."""
    batch_size: int = number(64, 1, 65_536)
    """Examples per gradient step (ONI: 256)."""
    steps_per_turn: int = number(8, 1, 1e6)
    """Gradient steps per turn of `inline`, and at a time in `local` and `connect`."""
    training_share: float = number(0.25, 0.01, 1)
    """Fraction of one core's time that gradient training may use in `local` and `connect`, for all terms together."""
    held_out_fraction: float = number(0.1, 0, 0.9)
    """Fraction of captions, chosen by a hash, whose answers are never trained on: they decide early stopping and
    measure quality. The first 200 captions are not held out, so that small vocabularies are learnt fully."""
    patience: int = number(10, 1, 1e6)
    """Early stopping: training pauses after this many evaluations (one every 25 steps) without a better held-out loss,
    until the number of answers has grown by a tenth."""
    epsilon: float = number(-0.5, -1e6, 1e6)
    """For `ranking` with epsilon_quantile -1: the z-score above which a caption is rewarded (ONI)."""
    epsilon_quantile: float = number(-2.0, -2, 0.999999)
    """For `ranking`: -2 rewards the best of the judged captions, as many as the judge puts above its theta (if captions
    were compared and not judged, Motif's quantile); a value in [0, 1) uses that quantile of the z-scores over the
    distinct captions as threshold (Motif: 0.5); -1 uses `epsilon`."""
    embedding: str = one_of("sentences", "bag-of-words")
    """For `embedding`: `sentences` (an encoder in the annotation service) or `bag-of-words` (needs no service)."""
    goals: list[str] = field(default_factory=list)
    """For `embedding`: at most 64 goal sentences, worded like captions; empty uses the rubric's positive examples."""
    goal_once_per_episode: bool = False
    """For `embedding`: each goal is rewarded once per episode (after ELLM). A caption counts for its nearest goal only:
    if that goal has been rewarded, the caption earns nothing, even if it is close to another."""
