//! Lists that a client filters, sorts and pages: ids in order, and how many there are in all. The rows
//! themselves are read by the aggregate that owns them.

use std::fmt::Write;

use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::Result;
use crate::jsonapi::Page;

/// What a column must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// One of these; `null` also lets rows without a value pass.
    OneOf { values: Vec<String>, null: bool },
    /// Contains this text, whatever its case.
    Contains(String),
}

impl Match {
    pub fn is(value: impl Into<String>) -> Self {
        Self::OneOf { values: vec![value.into()], null: false }
    }
}

/// A list in the making. Tables and columns are texts of ours; clients' texts are bound, never written into SQL.
#[derive(Debug)]
pub struct Selection {
    from: &'static str,
    id: &'static str,
    conditions: String,
    binds: Vec<String>,
    order: String,
}

impl Selection {
    /// Of `SELECT id FROM from`; `id` also breaks ties of the order.
    #[must_use]
    pub fn new(from: &'static str, id: &'static str) -> Self {
        Self { from, id, conditions: String::from("1 = 1"), binds: Vec::new(), order: String::new() }
    }

    fn bind(&mut self, value: String) -> String {
        self.binds.push(value);
        format!("${}", self.binds.len())
    }

    fn and(&mut self, condition: &str) {
        self.conditions.push_str(" AND ");
        self.conditions.push_str(condition);
    }

    /// Rows whose `column` is like that.
    #[must_use]
    pub fn column(mut self, column: &'static str, wanted: Match) -> Self {
        let condition = self.condition(column, wanted);
        self.and(&condition);
        self
    }

    fn condition(&mut self, column: &'static str, wanted: Match) -> String {
        match wanted {
            Match::OneOf { values, null } => {
                let places: Vec<String> = values.into_iter().map(|value| self.bind(value)).collect();
                let listed =
                    if places.is_empty() { "1 = 0".to_owned() } else { format!("{column} IN ({})", places.join(", ")) };
                if null { format!("({listed} OR {column} IS NULL)") } else { format!("({listed})") }
            }
            Match::Contains(text) => {
                let place = self.bind(pattern(&text));
                format!("LOWER({column}) LIKE LOWER({place}) ESCAPE '!'")
            }
        }
    }

    /// Rows of which any of `columns` contains `text`.
    #[must_use]
    pub fn search(mut self, columns: &[&'static str], text: &str) -> Self {
        let any: Vec<String> =
            columns.iter().map(|column| self.condition(column, Match::Contains(text.to_owned()))).collect();
        self.and(&format!("({})", any.join(" OR ")));
        self
    }

    /// Rows for which the SQL `condition` holds; `?` in it is `value`.
    #[must_use]
    pub fn holds(mut self, condition: &'static str, value: &str) -> Self {
        let place = self.bind(value.to_owned());
        self.and(&condition.replace('?', &place));
        self
    }

    /// Then by this column.
    #[must_use]
    pub fn order_by(mut self, column: &'static str, descending: bool) -> Self {
        // writing to a String cannot fail
        let _ = write!(self.order, "{column}{}, ", if descending { " DESC" } else { "" });
        self
    }

    /// The ids on the page, and how many rows there are on all pages.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn page(self, connection: &mut AnyConnection, page: Page) -> Result<(Vec<String>, i64)> {
        let Self { from, id, conditions, binds, order } = self;
        let mut count = sqlx::query(AssertSqlSafe(format!("SELECT COUNT(*) AS n FROM {from} WHERE {conditions}")));
        for bind in &binds {
            count = count.bind(bind);
        }
        let total = count.fetch_one(&mut *connection).await?.try_get("n")?;
        let (limit, offset) = (binds.len() + 1, binds.len() + 2);
        let mut list = sqlx::query(AssertSqlSafe(format!(
            "SELECT {id} AS id FROM {from} WHERE {conditions} ORDER BY {order}{id} LIMIT ${limit} OFFSET ${offset}"
        )));
        for bind in &binds {
            list = list.bind(bind);
        }
        let rows = list.bind(i64::from(page.size)).bind(page.offset()).fetch_all(connection).await?;
        let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<_, sqlx::Error>>()?;
        Ok((ids, total))
    }
}

/// The LIKE pattern for "contains `text`", with `!` as its escape.
fn pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for letter in text.chars() {
        if matches!(letter, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}
