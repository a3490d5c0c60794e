//! The shape of a JSON text: its field names in the order of the text.
//!
//! `serde_json::Value` sorts the fields of an object; the interface promises an order, so it is
//! read here from the text itself.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

enum Shape {
    Leaf,
    Object(Vec<(String, Shape)>),
    Array(Vec<Shape>),
}

/// For example `{status,nodes[]}` or `{quorum{required,achieved}}`. Arrays of objects show the
/// shape of their elements once, and panic if the elements differ.
pub fn shape(json: &str) -> String {
    serde_json::from_str::<Shape>(json)
        .unwrap_or_else(|error| panic!("not JSON ({error}): {json:?}"))
        .to_string()
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf => Ok(()),
            Self::Object(fields) => {
                let fields: Vec<_> =
                    fields.iter().map(|(name, of)| format!("{name}{of}")).collect();
                write!(f, "{{{}}}", fields.join(","))
            }
            Self::Array(elements) => {
                let mut shapes: Vec<_> = elements.iter().map(Self::to_string).collect();
                shapes.dedup();
                assert!(shapes.len() <= 1, "elements of different shapes: {shapes:?}");
                write!(f, "[{}]", shapes.join(""))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Shape::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(Shape::Array(elements))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Leaf)
    }
}

#[test]
fn a_shape_keeps_the_order_of_the_text() {
    assert_eq!(
        shape(r#"{"b":1,"a":{"z":null,"y":[{"q":true},{"q":false}]},"c":[1,"x"]}"#),
        "{b,a{z,y[{q}]},c[]}"
    );
}

#[test]
#[should_panic(expected = "different shapes")]
fn elements_of_different_shapes_are_noticed() {
    let _ = shape(r#"[{"a":1},{"b":1}]"#);
}
