#!/usr/bin/env bash
# Loads the demo's texts into schema "demo" of the database that PGHOST, PGPORT, PGUSER and
# PGDATABASE name, embeds their mentions and asks for entity types that the texts never spell out.
# Safe to run again: it starts from its own tables anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v psql > /dev/null; then
    echo "demo: psql is not on PATH; 'make demo' sets it up." >&2
    exit 1
fi
# The texts and the printed answers are UTF-8 whatever the terminal's locale says.
export PGCLIENTENCODING=UTF8

sql() {
    psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"
}

step() {
    printf '\n\n%s\n%s\n\n' "$1" "${1//?/=}"
}

step "1. Texts"
sql -f load.sql

step "2. The engine"
sql -f engine.sql

step "3. One call, and the column stays searchable by entity type"
sql -f embed.sql

mapfile -t types < queries.txt
step "4. Which texts mention a ${types[0]}? The query, its answer and its plan"
sql -v type="${types[0]}" -v k=5 -f first.sql

step "5. ${#types[@]} queries: the best five texts, similarity, the mention that matched"
echo "✓ the text is about the type asked for, ✗ it is not. Below each, what PostgreSQL's"
echo "full-text search finds for the same words."
for type in "${types[@]}"; do
    sql -v type="$type" -f search.sql
done

step "6. Precision at R (R = number of texts on the subject)"
sql -f summary.sql

cat << 'END'

Try it yourself: 'make psql', then any type you like, for instance

    SELECT s.mention, s.similarity, t.body
    FROM ner_search('demo.text', 'castle') AS s JOIN demo.text AS t ON t.id = (s.key->>'id')::int;

    INSERT INTO demo.text (body) VALUES ('They slept in the shadow of Neuschwanstein.');

    SELECT entity, score FROM ner_entity_embeddings('Ada Lovelace met Charles Babbage in London.');
END
