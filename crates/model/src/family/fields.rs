//! Typed access to a configuration's fields, with errors that name the field and its value.

use serde_json::{Map, Value};

use super::ConfigError;

/// Values are shown in errors up to so many characters: enough for any that makes sense.
const SHOWN_CHARS_MAX: usize = 80;

/// An object of a configuration file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'static str,
    /// Where the object is in the file: empty, or a field's name and a dot.
    prefix: &'static str,
    object: &'a Map<String, Value>,
    /// The object that this one is in, where it describes the decoder of a model for images and sound.
    outer: Option<&'a Map<String, Value>>,
}

/// The file as an object.
pub(super) fn parse(file: &'static str, text: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_slice(text).map_err(|e| ConfigError::NotJson { file, detail: e.to_string() })
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'static str, object: &'a Map<String, Value>) -> Self {
        Self { file, prefix: "", object, outer: None }
    }

    /// The decoder's own object, where it has one.
    pub(super) fn text_config(&self) -> Result<Self, ConfigError> {
        let nested = self.object("text_config", "text_config.")?;
        Ok(nested.map_or(*self, |nested| Self { outer: Some(self.object), ..nested }))
    }

    /// Whether these are nested in those of a model for images and sound.
    pub(super) fn is_nested(&self) -> bool {
        self.outer.is_some()
    }

    /// The object that says `field` of the whole model: the outer one, if it says it.
    pub(super) fn shared(&self, field: &str) -> Self {
        match self.outer.filter(|outer| outer.get(field).is_some_and(|value| !value.is_null())) {
            Some(object) => Self { prefix: "", object, outer: None, ..*self },
            None => *self,
        }
    }

    /// The value, unless it is absent or null.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Whether there is a value that is not null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// Whether the field is there and null: families give that another meaning than its absence.
    pub(super) fn is_null(&self, field: &str) -> bool {
        self.object.get(field).is_some_and(Value::is_null)
    }

    /// A whole number in `min..=max`, if there is one.
    pub(super) fn whole(&self, field: &str, min: usize, max: usize) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let Some(number) = as_whole(value) else {
            return Err(self.wrong_type(field, "a whole number"));
        };
        match usize::try_from(number) {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.out_of_range(field, format!("between {min} and {max}"))),
        }
    }

    /// A whole number in `min..=max` that must be there.
    pub(super) fn required(&self, field: &str, min: usize, max: usize) -> Result<usize, ConfigError> {
        self.whole(field, min, max)?.ok_or_else(|| self.missing(field))
    }

    /// A finite number above zero (or zero, with `or_zero`), if there is one.
    pub(super) fn positive(&self, field: &str, or_zero: bool) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let Some(number) = value.as_f64() else {
            return Err(self.wrong_type(field, "a number"));
        };
        // Weights are computed with in f32: what overflows there is no number here either.
        let fits = (number as f32).is_finite() && ((number as f32) > 0.0 || (or_zero && number == 0.0));
        if fits {
            Ok(Some(number))
        } else {
            Err(self.out_of_range(field, "a finite number above 0".to_owned()))
        }
    }

    /// True or false; false where absent.
    pub(super) fn flag(&self, field: &str) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.wrong_type(field, "true or false")),
        }
    }

    /// True or false; `default` where absent.
    pub(super) fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        if self.has(field) { self.flag(field) } else { Ok(default) }
    }

    /// A text that must be there.
    pub(super) fn text(&self, field: &str) -> Result<&'a str, ConfigError> {
        match self.get(field) {
            None => Err(self.missing(field)),
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(self.wrong_type(field, "a text")),
        }
    }

    /// A list of texts; empty where absent.
    pub(super) fn texts(&self, field: &str) -> Result<Vec<&'a str>, ConfigError> {
        let wrong = || self.wrong_type(field, "a list of texts");
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|v| v.as_str().ok_or_else(wrong)).collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// A list of so many positive numbers, which must be there.
    pub(super) fn positives(&self, field: &str, count: usize) -> Result<Vec<f32>, ConfigError> {
        let Some(value) = self.get(field) else { return Err(self.missing(field)) };
        let list = value.as_array().ok_or_else(|| self.wrong_type(field, "a list of numbers"))?;
        let number = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
        let numbers: Option<Vec<f32>> = list.iter().map(number).collect();
        numbers
            .filter(|numbers| numbers.len() == count)
            .ok_or_else(|| self.out_of_range(field, format!("a list of {count} numbers above 0")))
    }

    /// One whole number or a list of them; empty where absent. `None` where one is negative.
    pub(super) fn wholes(&self, field: &str) -> Result<Vec<u64>, ConfigError> {
        let wrong = || self.wrong_type(field, "a whole number from 0, or a list of them");
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|v| v.as_u64().ok_or_else(wrong)).collect(),
            Some(value) => Ok(vec![value.as_u64().ok_or_else(wrong)?]),
        }
    }

    /// The object in a field, if there is one that is not empty. `prefix` is the field's name and a dot.
    pub(super) fn object(
        &self,
        field: &str,
        prefix: &'static str,
    ) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(object)) if object.is_empty() => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { file: self.file, prefix, object, outer: None })),
            Some(_) => Err(self.wrong_type(field, "an object")),
        }
    }

    /// The names of the fields whose values are objects.
    pub(super) fn nested(&self) -> Vec<&'a str> {
        self.object.iter().filter(|(_, value)| value.is_object()).map(|(name, _)| name.as_str()).collect()
    }

    /// The names of all fields.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// Whether `other` has the same values.
    pub(super) fn is_same(&self, other: &Fields<'_>) -> bool {
        self.object == other.object
    }

    pub(super) fn missing(&self, field: &str) -> ConfigError {
        ConfigError::Missing { file: self.file, field: self.path(field) }
    }

    pub(super) fn wrong_type(&self, field: &str, expected: &'static str) -> ConfigError {
        ConfigError::WrongType {
            file: self.file,
            field: self.path(field),
            found: self.shown(field),
            expected,
        }
    }

    pub(super) fn out_of_range(&self, field: &str, expected: String) -> ConfigError {
        ConfigError::OutOfRange {
            file: self.file,
            field: self.path(field),
            found: self.shown(field),
            expected,
        }
    }

    pub(super) fn unsupported(&self, field: &str, remedy: String) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file,
            field: self.path(field),
            found: self.shown(field),
            remedy,
        }
    }

    fn path(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn shown(&self, field: &str) -> String {
        let text = self.object.get(field).map_or_else(|| "absent".to_owned(), Value::to_string);
        match text.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }
}

/// Whole numbers also come as `4096.0` from exporters that know only floats.
fn as_whole(value: &Value) -> Option<i128> {
    if let Some(number) = value.as_i64() {
        return Some(i128::from(number));
    }
    if let Some(number) = value.as_u64() {
        return Some(i128::from(number));
    }
    value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e18).map(|number| number as i128)
}
