//! A choice among attention heads that stand side by side.

use reprpo_plugin::prelude::*;

/// Some of the heads.
#[transform(
    name = "heads",
    summary = "some of the heads that the tap `attention-heads` reads; frozen",
    reference = "this project",
    explain = "\
T([z₁ … z_H]) = [z_j for j in heads]

Nothing is trained. Losses compare the chosen heads as one vector."
)]
pub struct Heads {
    /// Which heads, from 0, the same ones at every tap; all where the list is empty.
    pub heads: Vec<i64>,
    /// Width of one head, as the model's `config.json` has it.
    #[default(64)]
    pub head_dim: i64,
}

impl TransformPlugin for Heads {
    fn build(self, cx: &TransformCx<'_>, _init: &mut Init) -> Result<Box<dyn Transform>> {
        if self.heads.is_empty() {
            return Ok(Box::new(Columns(None)));
        }
        let d = self.head_dim;
        if d < 1 || cx.width % d != 0 {
            return Err(Error::new(format!(
                "`transform.head_dim` is {d}, which does not divide the {} numbers at `{}`",
                cx.width, cx.site
            ))
            .hint(
                "take the tap `attention-heads`, and the `head_dim` of the model's `config.json`",
            ));
        }
        let all = cx.width / d;
        if let Some(bad) = self.heads.iter().find(|j| !(0..all).contains(*j)) {
            return Err(Error::new(format!(
                "`transform.heads` holds {bad}, which `{}` does not have",
                cx.site
            ))
            .hint(format!("valid: 0 to {}", all - 1)));
        }
        // Columns j·d … j·d + d − 1 of every chosen j.
        let columns: Vec<i64> = self.heads.iter().flat_map(|j| j * d..(j + 1) * d).collect();
        Ok(Box::new(Columns(Some(Tensor::from_slice(&columns).to_device(cx.embedding.device())))))
    }
}

/// The numbers of the columns that are kept; none: all of them.
struct Columns(Option<Tensor>);

impl Transform for Columns {
    fn forward(&self, h: &Tensor, _around: &Around) -> Result<Tensor> {
        Ok(match &self.0 {
            Some(columns) => h.f_index_select(-1, columns)?,
            None => h.shallow_clone(),
        })
    }

    fn linear(&self) -> bool {
        true
    }

    fn orthogonal(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use reprpo_plugin::tch::Device;
    use reprpo_plugin::testkit::model;

    use super::*;

    fn build(heads: &[i64], head_dim: i64) -> Result<Box<dyn Transform>> {
        let embedding = Tensor::zeros([1, 1], (Kind::Double, Device::Cpu));
        let cx = TransformCx {
            model: &model(),
            site: &Site::Input("o_proj".to_owned()),
            width: 6,
            embedding: &embedding,
            unembedding: &embedding,
        };
        Heads { heads: heads.to_vec(), head_dim }
            .build(&cx, &mut Init::new(0, "", Kind::Double, Device::Cpu))
    }

    #[test]
    fn the_columns_of_the_chosen_heads_are_left_in_the_order_of_the_choice() {
        let h = Tensor::arange(12, (Kind::Double, Device::Cpu)).reshape([2, 6]);
        let y = build(&[2, 0], 2).unwrap().forward(&h, &Around::default()).unwrap();
        assert_eq!(
            Vec::<f64>::try_from(y.reshape([-1])).unwrap(),
            [4.0, 5.0, 0.0, 1.0, 10.0, 11.0, 6.0, 7.0]
        );
        assert_eq!(build(&[], 4).unwrap().forward(&h, &Around::default()).unwrap(), h);
    }

    #[test]
    fn heads_that_are_not_there_are_refused() {
        let refused =
            |heads: &[i64], head_dim| format!("{:?}", build(heads, head_dim).err().unwrap());
        assert!(
            refused(&[0, 3], 2).contains("holds 3")
                && refused(&[0, 3], 2).contains("valid: 0 to 2")
        );
        assert!(refused(&[0], 4).contains("`transform.head_dim` is 4"));
    }
}
