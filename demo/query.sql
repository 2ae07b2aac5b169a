WITH nearest AS MATERIALIZED (
    SELECT text_id, entity, start_char,
           embedding <=> ner_type_embedding(:'type') AS distance
    FROM demo.mention
    ORDER BY distance
    LIMIT 40
), best AS (
    SELECT DISTINCT ON (text_id) *
    FROM nearest
    ORDER BY text_id, distance
)
SELECT text_id, entity, start_char, round((1 - distance)::numeric, 3) AS similarity
FROM best
ORDER BY distance
LIMIT :k
