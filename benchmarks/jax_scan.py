"""The VAE and the GMVAE in JAX, for comparison: an epoch as one compiled scan over its steps, data on the device."""

import jax
import jax.numpy as jnp


def linear(key, n_in, n_out):
    a, b = jax.random.split(key)
    bound = n_in**-0.5
    return (
        jax.random.uniform(a, (n_in, n_out), minval=-bound, maxval=bound),
        jax.random.uniform(b, (n_out,), minval=-bound, maxval=bound),
    )


def mlp(layers, h):
    *hidden, (w, b) = layers
    for v, c in hidden:
        h = jax.nn.elu(h @ v + c)
    return h @ w + b


def log_normal(x, m, v):
    return -0.5 * (jnp.log(2 * jnp.pi * v) + (x - m) ** 2 / v).sum(-1)


def log_prior(parameters, z):
    """log p(z) of the GMVAE, a product of matrices as in codebase.utils.log_normal_mixture, but in float32."""
    m, v = parameters["z_pre"][0], jax.nn.softplus(parameters["z_pre"][1]) + 1e-8  # (K, D)
    constant = -0.5 * (m**2 / v + jnp.log(2 * jnp.pi * v)).sum(-1)
    log_p = z**2 @ (-0.5 / v).T + z @ (m / v).T + constant
    return jax.nn.logsumexp(log_p, axis=-1) - jnp.log(len(m))


def loss(parameters, x, key):
    """The negative ELBO."""
    m, h_v = jnp.split(mlp(parameters["enc"], x), 2, -1)
    v = jax.nn.softplus(h_v) + 1e-8
    z = m + jnp.sqrt(v) * jax.random.normal(key, m.shape)
    logits = mlp(parameters["dec"], z)
    rec = (jax.nn.softplus(logits) - x * logits).sum(-1)
    if "z_pre" in parameters:
        kl = log_normal(z, m, v) - log_prior(parameters, z)
    else:
        kl = 0.5 * (v + m**2 - 1 - jnp.log(v)).sum(-1)
    return (kl + rec).mean()


def epochs(images, mixture, batch_size=100):
    """Endless: trains an epoch at each next(), and yields its number of steps. images: (N, X) uint8."""
    images = jnp.asarray(images)
    n = len(images) // batch_size
    keys = jax.random.split(jax.random.PRNGKey(0), 7)
    sizes = [(784, 300), (300, 300), (300, 20), (10, 300), (300, 300), (300, 784)]
    layers = [linear(key, *size) for key, size in zip(keys, sizes, strict=False)]
    parameters = {"enc": layers[:3], "dec": layers[3:]}
    if mixture:
        parameters["z_pre"] = jax.random.normal(keys[6], (2, 500, 10)) / 5000**0.5
    zeros = jax.tree.map(jnp.zeros_like, parameters)

    def step(state, at):
        parameters, first, second, t = state
        rows, key = at
        a, b = jax.random.split(key)
        x = (jax.random.uniform(a, (batch_size, 784)) * 255 < images[rows]).astype(jnp.float32)
        value, g = jax.value_and_grad(loss)(parameters, x, b)
        t = t + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, g)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, g)
        parameters = jax.tree.map(
            lambda p, m, v: p - 1e-3 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8),
            *(parameters, first, second),
        )
        return (parameters, first, second, t), value

    @jax.jit
    def epoch(state, key):
        a, b = jax.random.split(key)
        rows = jax.random.permutation(a, len(images))[: n * batch_size].reshape(n, batch_size)
        return jax.lax.scan(step, state, (rows, jax.random.split(b, n)))

    state = (parameters, zeros, zeros, jnp.zeros(()))
    for i in range(10**9):
        state, losses = epoch(state, jax.random.PRNGKey(i))
        losses.block_until_ready()
        yield n
