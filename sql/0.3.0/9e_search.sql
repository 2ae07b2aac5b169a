-- Searching a managed index.

CREATE FUNCTION ner_retriever.filter_statement("table" regclass, filter text)
RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN format(E'SELECT FROM %s WHERE (%s\n) LIMIT 0', ner_retriever.own_rows("table"), filter);
COMMENT ON FUNCTION ner_retriever.filter_statement(regclass, text) IS
'A query that fails as a condition does';

-- $1 is the number of rows, $2 how many of the nearest mentions are looked at, $3 the least
-- similarity. Mentions whose row is gone are none. An exact search compares every mention instead of asking the vector index. Each hit comes
-- with the number of mentions that were looked at and the distance of the farthest (of the type whose
-- farthest is nearest). Distances are those to the type after the mentions that are nearest to it
-- (ner_retriever.feedback), whatever the condition; rows are ranked by them after smoothing over the
-- mentions that are looked at, and by the type's words near those. Similarities are those to the type itself.
CREATE OR REPLACE FUNCTION ner_retriever.search_statement(
    "table" regclass, types text[], filter text, "column" name, exact boolean
)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
-- For the scan below, whose candidates need not all be the nearest.
SET hnsw.ef_search = 100
AS $$
DECLARE
    i ner_retriever.managed_index;
    t record;
    cast_to text;
    operator text;
    refined real[];
    distance text;
    similarity text;
    target text;
    base text;
    there text;
    source text;
    names text;
    same_key text;
    key text;
    same_row text;
    own_row text;
    words_near text;
    nearest text;
    follows boolean;
    rescored text := 'SELECT n.*, n.distance AS ranked_by FROM n';
BEGIN
    i := ner_retriever.find("table", "column");
    PERFORM ner_retriever.check_key(i.id);
    PERFORM ner_retriever.check_mentions(i.base, i.key_numbers, i.mentions, i.storage);
    SELECT string_agg(format('m.%I AS k%s', mention_column, "position"), ', ' ORDER BY "position"),
           string_agg(format('n.k%s', "position"), ', ' ORDER BY "position"),
           -- jsonb_build_object would use a cast to json, of whoever made the type.
           string_agg(format(CASE WHEN builtin THEN '%L, b.k%s' ELSE '%L, pg_catalog.format(''%%s'', b.k%s)' END,
               base_column, "position"), ', ' ORDER BY "position"),
           string_agg(format('b.%I %s m.%I', base_column, equality, mention_column), ' AND '),
           string_agg(format('b.%I %s n.k%s', base_column, equality, "position"), ' AND ')
    INTO names, same_key, key, same_row, own_row
    FROM ner_retriever.key_columns(i.base, i.key_numbers, i.mentions);
    target := ner_retriever.name_of(i.mentions) || ' AS m';
    base := ner_retriever.own_rows(i.base);
    there := format('EXISTS (SELECT FROM %s AS b WHERE %s)', base, same_row);
    source := target || ' WHERE ' || there;
    IF filter IS NOT NULL THEN
        -- The condition sees the columns of the table alone, under its own name, and ends before what follows it.
        source := format(E'(SELECT * FROM %s WHERE (%s\n)) AS b JOIN %s ON %s', base, filter, target, same_row);
    END IF;
    SELECT format('OPERATOR(%I.<=>)', n.nspname) INTO operator
    FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector';
    cast_to := format('%s(%s)', ner_retriever.vector_type(i.storage::name), i.dims);
    FOR t IN
        SELECT q.name, e.fingerprint, e.embedding
        FROM (SELECT DISTINCT u.name FROM unnest(types) AS u (name) WHERE u.name IS NOT NULL) AS q
        CROSS JOIN LATERAL ner_retriever.type_query(q.name) AS e
    LOOP
        IF t.fingerprint <> i.fingerprint THEN
            RAISE EXCEPTION 'the mentions of table % are of model %, the engine has model %',
                i.base, i.fingerprint, t.fingerprint
                USING ERRCODE = 'object_not_in_prerequisite_state',
                      HINT = format('Its owner can embed the table anew: SELECT ner_reindex(%L).', i.base);
        END IF;
        distance := format('m.embedding %s %L::%s', operator, translate(t.embedding::text, '{}', '[]'), cast_to);
        similarity := format('1 OPERATOR(pg_catalog.-) (%s)', distance);
        -- The library, which knows the setting, is loaded by now.
        follows := current_setting('ner_retriever.feedback');
        IF follows THEN
            -- As many as ner_retriever_feedback::CANDIDATES.
            EXECUTE format(
                'SELECT ner_retriever.feedback($1, array_agg(n.embedding))'
                ' FROM (SELECT m.embedding::%s FROM %s WHERE %s ORDER BY %s LIMIT 100) AS n',
                ner_retriever.vector_type('vector'), target, there, distance)
            INTO refined USING t.embedding;
            distance := format('m.embedding %s %L::%s', operator,
                translate(coalesce(refined, t.embedding)::text, '{}', '[]'), cast_to);
        END IF;
        nearest := concat_ws(E'\nUNION ALL\n', nearest, format(
            '(SELECT %s, m.mention, m.start_char, m.end_char,'
            ' m.embedding::%s AS embedding, %s AS distance, %s AS similarity, %L::text AS type'
            ' FROM %s ORDER BY %s LIMIT $2)',
            names, ner_retriever.vector_type('vector'), distance, similarity, t.name, source,
            -- An index knows its operator, not a sum.
            CASE WHEN exact THEN format('(%s) OPERATOR(pg_catalog.+) 0', distance) ELSE distance END));
    END LOOP;
    IF nearest IS NULL THEN
        RAISE EXCEPTION 'no entity type to search for' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Pass the name of a type, such as ''dinosaur''.';
    END IF;
    IF follows THEN
        -- The row is found by its key.
        words_near := format('(SELECT ner_retriever.words_near(n.type, b.%I::text, n.start_char, n.end_char)'
                             ' FROM %s AS b WHERE %s LIMIT 1)', i."column", base, own_row);
        -- As many as ner_retriever_feedback::MOST; the others follow.
        rescored := format(
            'SELECT n.*, CASE WHEN n.place OPERATOR(pg_catalog.<=) 10000'
            ' THEN 1 OPERATOR(pg_catalog.-) s.smoothed[n.place::integer] OPERATOR(pg_catalog.-) coalesce(%s, 0)'
            ' ELSE n.distance OPERATOR(pg_catalog.+) 2 END AS ranked_by'
            ' FROM n JOIN (SELECT n.type, ner_retriever.smooth('
            'pg_catalog.array_agg((1 OPERATOR(pg_catalog.-) n.distance)::real ORDER BY n.place),'
            ' pg_catalog.array_agg(n.embedding ORDER BY n.place)) AS smoothed'
            ' FROM n WHERE n.place OPERATOR(pg_catalog.<=) 10000 GROUP BY n.type) AS s'
            ' ON s.type OPERATOR(pg_catalog.=) n.type', words_near);
    END IF;
    RETURN format(
        'WITH nearest AS MATERIALIZED (%1$s), n AS MATERIALIZED (SELECT nearest.*,'
        ' pg_catalog.row_number() OVER (PARTITION BY nearest.type ORDER BY nearest.distance) AS place FROM nearest),'
        ' best AS (SELECT DISTINCT ON (%2$s) n.* FROM (%3$s) AS n'
        ' WHERE n.similarity OPERATOR(pg_catalog.>=) $3 ORDER BY %2$s, n.ranked_by)'
        ' SELECT ROW(pg_catalog.jsonb_build_object(%4$s), b.mention, b.start_char, b.end_char, b.similarity, b.type)'
        '::ner_retriever.hit AS hit,'
        ' (SELECT pg_catalog.count(*) FROM n) AS mentions,'
        ' (SELECT pg_catalog.min(f.distance) FROM (SELECT pg_catalog.max(n.distance) AS distance FROM n'
        ' GROUP BY n.type) AS f) AS farthest'
        ' FROM best AS b ORDER BY b.ranked_by LIMIT $1', nearest, same_key, rescored, key);
END
$$;
COMMENT ON FUNCTION ner_retriever.search_statement(regclass, text[], text, name, boolean) IS
'What ner_search runs: EXPLAIN it to see the plan';

CREATE OR REPLACE FUNCTION ner_retriever.search(
    "table" regclass, types text[], k integer, filter text, min_similarity real, "column" name,
    OUT hits ner_retriever.hit[]
)
-- Stable, and so unable to write, whatever the condition calls.
LANGUAGE plpgsql STABLE
-- The session's search_path stays: the condition is the caller's, and is read as the caller writes it.
-- 200 candidates instead of pgvector's 40: so many are smoothed at least. A scan that has passed over
-- rows of the same text or outside of the condition goes on for more.
SET hnsw.ef_search = 200 SET hnsw.iterative_scan = 'relaxed_order'
AS $$
DECLARE
    looked_at bigint;
    farthest double precision;
    nearest bigint;
    exact boolean := false;
BEGIN
    IF k IS NULL OR k OPERATOR(pg_catalog.<) 1 THEN
        RAISE EXCEPTION 'k must be at least 1' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It is the number of rows to find.';
    END IF;
    -- What is wrong with a condition is told of the condition, not of a statement with two vectors in it.
    IF filter IS NOT NULL THEN
        EXECUTE ner_retriever.filter_statement("table", filter);
    END IF;
    -- As ner_retriever_feedback::FEWEST and FOR_EACH.
    nearest := GREATEST(200, pg_catalog.int8(k) OPERATOR(pg_catalog.*) 4);
    LOOP
        EXECUTE pg_catalog.format(
            'SELECT pg_catalog.array_agg(q.hit), pg_catalog.max(q.mentions), pg_catalog.max(q.farthest)'
            ' FROM (%s) AS q',
            ner_retriever.search_statement("table", types, filter, "column", exact))
        INTO hits, looked_at, farthest
        USING k, nearest, COALESCE(min_similarity, '-1');
        -- Done with enough rows, or after every mention, or where the next are nearer to the type than
        -- min_similarity only if they are nearer to it than to what it found.
        EXIT WHEN exact OR COALESCE(pg_catalog.cardinality(hits), 0) OPERATOR(pg_catalog.>=) k;
        EXIT WHEN 1 OPERATOR(pg_catalog.-) farthest OPERATOR(pg_catalog.<) min_similarity;
        -- The index gives up after hnsw.max_scan_tuples.
        exact := COALESCE(looked_at, 0) OPERATOR(pg_catalog.<)
            (nearest OPERATOR(pg_catalog.*) pg_catalog.cardinality(types));
        nearest := nearest OPERATOR(pg_catalog.*) 4;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.search(regclass, text[], integer, text, real, name) IS
'The rows of a managed index that mention an entity of any of the types best, as of the calling statement';

