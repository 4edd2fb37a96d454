//! Query parameters: `page[number]`, `page[size]`, `filter[x]`, `search[x]`, `include`, `sort`.
//! Unknown ones are kept and ignored: the terraform CLI sends junk keys.

use serde_json::{Value, json};

/// The decoded pairs of a query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// From the raw query string; never fails.
    #[must_use]
    pub fn parse(raw: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(raw.unwrap_or_default().as_bytes())
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        Self { pairs }
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// `filter[name]`
    #[must_use]
    pub fn filter(&self, name: &str) -> Option<&str> {
        self.get(&format!("filter[{name}]"))
    }

    /// The wanted relationship paths of `include`.
    pub fn includes(&self) -> impl Iterator<Item = &str> {
        self.get("include").unwrap_or_default().split(',').map(str::trim).filter(|path| !path.is_empty())
    }

    #[must_use]
    pub fn page(&self) -> Page {
        let number = |key: &str| self.get(key).and_then(|text| text.parse::<u32>().ok());
        Page {
            number: number("page[number]").unwrap_or(1).max(1),
            size: number("page[size]").unwrap_or(Page::DEFAULT_SIZE).clamp(1, Page::MAX_SIZE),
        }
    }
}

/// A page of a list: 1-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub number: u32,
    pub size: u32,
}

impl Page {
    pub const DEFAULT_SIZE: u32 = 20;
    pub const MAX_SIZE: u32 = 100;

    /// Rows to skip.
    #[must_use]
    pub fn offset(self) -> i64 {
        i64::from(self.number - 1) * i64::from(self.size)
    }

    /// The `meta` member of a list of `total` rows.
    #[must_use]
    pub fn meta(self, total: i64) -> Value {
        let size = i64::from(self.size);
        let pages = ((total + size - 1) / size).max(1);
        let current = i64::from(self.number);
        json!({"pagination": {
            "current-page": current,
            "page-size": size,
            "prev-page": (current > 1).then_some(current - 1),
            "next-page": (current < pages).then_some(current + 1),
            "total-pages": pages,
            "total-count": total,
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_escapes_and_junk_are_read() {
        let query = Query::parse(Some(
            "page%5Bnumber%5D=3&page[size]=1000&filter[name]=a+b&?TagBindings=%7B+x&include=agents, workspaces",
        ));
        assert_eq!(query.page(), Page { number: 3, size: 100 });
        assert_eq!(query.filter("name"), Some("a b"));
        assert_eq!(query.includes().collect::<Vec<_>>(), ["agents", "workspaces"]);
    }

    #[test]
    fn a_page_out_of_range_echoes_its_number() {
        let meta = Page { number: 999, size: 20 }.meta(3);
        assert_eq!(meta["pagination"]["current-page"], 999);
        assert_eq!(meta["pagination"]["total-count"], 3);
        assert_eq!(meta["pagination"]["next-page"], Value::Null);
    }
}
