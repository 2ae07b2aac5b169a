\echo Use "CREATE EXTENSION ner_retriever" to load this file. \quit

-- The functions call a model, which costs far more than any operator: the COSTs keep the planner
-- from calling them more often than it must, and make it prefer an HNSW index to a scan.
-- None of them writes anything, and each connection has the engine to itself: PARALLEL SAFE.

CREATE FUNCTION ner_entity_embeddings(
    text text,
    OUT entity text,
    OUT start_char integer,
    OUT end_char integer,
    OUT score real,
    OUT embedding @extschema:vector@.vector
)
RETURNS SETOF record
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100000 ROWS 5
AS 'MODULE_PATHNAME', 'ner_entity_embeddings_wrapper';

COMMENT ON FUNCTION ner_entity_embeddings(text) IS
'One row for each entity mention in a text: the mention, where it is (characters from 0, end excluded), how sure the detector is (0 to 1), and its embedding';

CREATE FUNCTION ner_entity_embeddings(
    texts text[],
    OUT doc integer,
    OUT entity text,
    OUT start_char integer,
    OUT end_char integer,
    OUT score real,
    OUT embedding @extschema:vector@.vector
)
RETURNS SETOF record
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100000 ROWS 100
AS 'MODULE_PATHNAME', 'ner_entity_embeddings_of_texts_wrapper';

COMMENT ON FUNCTION ner_entity_embeddings(text[]) IS
'Entity mentions of many texts in one request; doc is the position of the text in the array, from 1, in the order of unnest. NULL and empty texts count, but have no rows';

CREATE FUNCTION ner_entity_embeddings(
    text text,
    spans int4range[],
    OUT entity text,
    OUT start_char integer,
    OUT end_char integer,
    OUT score real,
    OUT embedding @extschema:vector@.vector
)
RETURNS SETOF record
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100000 ROWS 5
AS 'MODULE_PATHNAME', 'ner_entity_embeddings_of_spans_wrapper';

COMMENT ON FUNCTION ner_entity_embeddings(text, int4range[]) IS
'Embeddings of the mentions at the given spans of a text (characters from 0, end excluded), in the order of the array';

CREATE FUNCTION ner_entities(
    text text,
    OUT entity text,
    OUT start_char integer,
    OUT end_char integer,
    OUT score real
)
RETURNS SETOF record
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 100000 ROWS 5
AS 'MODULE_PATHNAME', 'ner_entities_wrapper';

COMMENT ON FUNCTION ner_entities(text) IS
'The entity mentions of a text, without embeddings';

CREATE FUNCTION ner_type_embedding(type_name text)
RETURNS @extschema:vector@.vector
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 10000
AS 'MODULE_PATHNAME', 'ner_type_embedding_wrapper';

COMMENT ON FUNCTION ner_type_embedding(text) IS
'Embedding of the name of an entity type, for ORDER BY embedding <=> ner_type_embedding(''dinosaur'')';

CREATE FUNCTION ner_type_embedding(type_name text, examples text[])
RETURNS @extschema:vector@.vector
LANGUAGE c STABLE STRICT PARALLEL SAFE COST 10000
AS 'MODULE_PATHNAME', 'ner_type_embedding_of_examples_wrapper';

COMMENT ON FUNCTION ner_type_embedding(text, text[]) IS
'Embedding of an entity type that is named and shown by examples, such as ner_type_embedding(''dinosaur'', ARRAY[''Triceratops'', ''T. rex''])';

CREATE FUNCTION ner_refine_type_add(
    state double precision[],
    type_name text,
    example @extschema:vector@.vector
)
RETURNS double precision[]
LANGUAGE c STABLE PARALLEL SAFE COST 100
AS 'MODULE_PATHNAME', 'ner_refine_type_add_wrapper';

COMMENT ON FUNCTION ner_refine_type_add(double precision[], text, @extschema:vector@.vector) IS
'Transition function of the aggregate ner_refine_type';

CREATE FUNCTION ner_refine_type_final(state double precision[])
RETURNS @extschema:vector@.vector
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ner_refine_type_final_wrapper';

COMMENT ON FUNCTION ner_refine_type_final(double precision[]) IS
'Final function of the aggregate ner_refine_type';

CREATE AGGREGATE ner_refine_type(type_name text, example @extschema:vector@.vector) (
    SFUNC = ner_refine_type_add,
    STYPE = double precision[],
    FINALFUNC = ner_refine_type_final,
    PARALLEL = SAFE
);

COMMENT ON AGGREGATE ner_refine_type(text, @extschema:vector@.vector) IS
'Embedding of an entity type that is named and shown by stored mentions; NULL without a mention. The type''s name is that of the first row';

CREATE FUNCTION ner_engine_status(
    OUT state text,
    OUT pid integer,
    OUT model text,
    OUT head text,
    OUT fingerprint text,
    OUT device text,
    OUT block integer,
    OUT dimensions integer,
    OUT uptime interval,
    OUT requests bigint,
    OUT tokens bigint,
    OUT batches bigint,
    OUT merged_requests bigint,
    OUT queue_depth bigint,
    OUT resident_bytes bigint
)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL SAFE COST 1000 ROWS 1
AS 'MODULE_PATHNAME', 'ner_engine_status_wrapper';

COMMENT ON FUNCTION ner_engine_status() IS
'What the engine is doing (stopped, idle, loading or ready) and has done since its start; never starts it';
