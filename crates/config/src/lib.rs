//! The one declaration of every setting, and the layers its values come from.
