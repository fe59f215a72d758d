//! Block-diagonal reflections and rotations.

use reprpo_plugin::prelude::*;

/// A block-diagonal map whose blocks are reflections, relaxed reflections or rotations.
#[transform(
    name = "ether",
    summary = "trainable reflections or rotations of the activations in diagonal blocks, also to \
        fewer dimensions",
    reference = "Bini et al. 2024, ETHER, §3 (ether, plus, two-sided); Qiu et al. 2023, OFT \
        (oft); applied to activations as in wassname, repr-preference-optimization",
    explain = "\
T(x) = x·blockdiag(B₁, …, B_n)·L    L: h → h/k with reduce = k, else absent

ether:          B = I − 2ûûᵀ             starts random: a reflection is never the identity
plus:           B = I − ûûᵀ + ŵŵᵀ        starts as the identity, w = u
oft:            B = (I + A)(I − A)⁻¹, A = stril(V) − stril(V)ᵀ    starts as the identity, V = 0
plus_two_sided: x·blockdiag(plus)·L·blockdiag(another plus)

û and ŵ are u and w [n h/n] at unit length, and V is [n h/n h/n]. L [h h/k] starts normal with
variance k/h, which keeps the mean squared length. ether and oft keep lengths and angles, so a
loss that only depends on these does not change. plus and L can change lengths: combine them with
a loss that is relative to the transformed length of the reference, or freeze T with `--set
train.transform=false`.",
    example(form = "plus", reduce = 2)
)]
pub struct Ether {
    /// Form of each block.
    pub form: Form,
    /// n: number of diagonal blocks. It must divide the width; with `plus_two_sided` and `reduce`,
    /// it must also divide the reduced width.
    #[default(4)]
    pub blocks: u32,
    /// k: the blocks are followed by a trained linear map that reduces the width by a factor of k.
    /// The width must be divisible by k. `none` means no linear map.
    pub reduce: Option<u32>,
}

/// The forms of a block.
#[choice]
pub enum Form {
    /// I − 2ûûᵀ, a reflection.
    #[default]
    Ether,
    /// I − ûûᵀ + ŵŵᵀ, which can change lengths.
    Plus,
    /// (I + A)(I − A)⁻¹ with a skew-symmetric A, a rotation.
    Oft,
    /// The `plus` map on each side of the linear map.
    PlusTwoSided,
}

impl TransformPlugin for Ether {
    fn build(self, cx: &TransformCx<'_>, init: &mut Init) -> Result<Box<dyn Transform>> {
        let h = cx.width;
        let (n, k) = (i64::from(self.blocks), self.reduce.map(i64::from));
        if let Some(k) = k.filter(|k| *k < 1 || h % k != 0) {
            return Err(Error::new(format!(
                "`transform.reduce` is {k}, which does not divide the width {h} at `{}`",
                cx.site
            ))
            .hint(format!("valid: {}", divisors(h))));
        }
        let reduced = h / k.unwrap_or(1);
        let two_sided = self.form == Form::PlusTwoSided;
        if n < 1 || h % n != 0 || (two_sided && reduced % n != 0) {
            let (what, width) =
                if n >= 1 && h % n == 0 { ("reduced width", reduced) } else { ("width", h) };
            return Err(Error::new(format!(
                "`transform.blocks` is {n}, which does not divide the {what} {width} at `{}`",
                cx.site
            ))
            .hint(format!("valid: {}", divisors(if two_sided { reduced } else { h }))));
        }
        let before = match self.form {
            Form::Ether => Blocks::Reflection { u: init.normal("u", &[n, h / n], 1.0) },
            Form::Oft => Blocks::Rotation { v: init.zeros(&[n, h / n, h / n]) },
            Form::Plus | Form::PlusTwoSided => Blocks::plus(init, ["u", "w"], n, h),
        };
        let linear = k.map(|_| init.normal("linear", &[h, reduced], 1.0 / (reduced as f64).sqrt()));
        let after = two_sided.then(|| Blocks::plus(init, ["u_out", "w_out"], n, reduced));
        Ok(Box::new(EtherTransform { before, linear, after }))
    }
}

/// Returns the divisors of `n` up to 512, for a hint.
fn divisors(n: i64) -> String {
    (1..=n.min(512)).filter(|d| n % d == 0).map(|d| d.to_string()).collect::<Vec<_>>().join(", ")
}

/// A block-diagonal map with n blocks of width b. The first dimension of each parameter has size n.
enum Blocks {
    /// I − 2ûûᵀ, where u has shape `[n b]`.
    Reflection { u: Tensor },
    /// I − ûûᵀ + ŵŵᵀ, where u and w have shape `[n b]`.
    Plus { u: Tensor, w: Tensor, keys: [&'static str; 2] },
    /// The Cayley map of stril(V) − stril(V)ᵀ, where V has shape `[n b b]`.
    Rotation { v: Tensor },
}

impl Blocks {
    /// Creates n blocks of the form `plus` for states of width h. Initially u = w, so each block is
    /// the identity.
    fn plus(init: &mut Init, keys: [&'static str; 2], n: i64, h: i64) -> Self {
        let u = init.normal(keys[0], &[n, h / n], 1.0);
        let w = u.detach().copy().set_requires_grad(true);
        Blocks::Plus { u, w, keys }
    }

    /// Applies the map to each row of x, which has shape `[m h]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let blocks = |n: i64| x.f_reshape([x.size()[0], n, -1]);
        let along = |x: &Tensor, u: &Tensor| {
            let unit = u / u.norm_scalaropt_dim(2.0, -1, true);
            (x * &unit).sum_dim_intlist(-1, true, None::<Kind>) * unit
        };
        Ok(match self {
            Blocks::Reflection { u } => {
                let x = blocks(u.size()[0])?;
                &x - along(&x, u) * 2.0
            }
            Blocks::Plus { u, w, .. } => {
                let x = blocks(u.size()[0])?;
                &x - along(&x, u) + along(&x, w)
            }
            Blocks::Rotation { v } => {
                let (n, b) = (v.size()[0], v.size()[1]);
                let lower = v.tril(-1);
                let skew = &lower - lower.transpose(-2, -1);
                // x has shape [n m b]. I + A and (I − A)⁻¹ commute, so y can be computed from
                // y(I − A) = x(I + A) without an inverse.
                let x = blocks(n)?.transpose(0, 1);
                let system = Tensor::eye(b, (v.kind(), v.device())) - &skew;
                Tensor::f_linalg_solve(&system, &(&x + x.f_matmul(&skew)?), false)?.transpose(0, 1)
            }
        }
        .f_reshape(x.size())?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        match self {
            Blocks::Reflection { u } => vec![Parameter::new("u", u)],
            Blocks::Plus { u, w, keys } => {
                vec![Parameter::new(keys[0], u), Parameter::new(keys[1], w)]
            }
            Blocks::Rotation { v } => vec![Parameter::new("v", v)],
        }
    }
}

/// The transform of one tap.
struct EtherTransform {
    before: Blocks,
    /// Linear map L `[h h/k]`.
    linear: Option<Tensor>,
    after: Option<Blocks>,
}

impl Transform for EtherTransform {
    fn forward(&self, h: &Tensor, _: &Around) -> Result<Tensor> {
        let mut size = h.size();
        let width = size[size.len() - 1];
        let kind = self.before.parameters()[0].tensor.kind();
        let mut x = self.before.forward(&h.f_reshape([-1, width])?.f_to_kind(kind)?)?;
        if let Some(linear) = &self.linear {
            x = x.f_matmul(linear)?;
        }
        if let Some(after) = &self.after {
            x = after.forward(&x)?;
        }
        if let Some(last) = size.last_mut() {
            *last = x.size()[1];
        }
        Ok(x.f_reshape(size)?)
    }

    fn parameters(&self) -> Vec<Parameter> {
        let linear = self.linear.iter().map(|l| Parameter::new("linear", l));
        self.before
            .parameters()
            .into_iter()
            .chain(linear)
            .chain(self.after.iter().flat_map(Blocks::parameters))
            .collect()
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        self.linear.is_none() && !matches!(self.before, Blocks::Plus { .. })
    }
}
