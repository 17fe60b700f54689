{
"type": "FeatureCollection",
"name": "regions",
"xy_coordinate_resolution": 1e-07,
"features": [
{ "type": "Feature", "properties": { "class_name": "a!b" }, "geometry": { "type": "Polygon", "coordinates": [ [ [ 0.0, 0.0 ], [ 1.0, 0.0 ], [ 1.0, 1.0 ], [ 0.0, 1.0 ], [ 0.0, 0.0 ] ] ] } },
{ "type": "Feature", "properties": { "class_name": "x;y" }, "geometry": { "type": "Polygon", "coordinates": [ [ [ 1.0, 0.0 ], [ 2.0, 0.0 ], [ 2.0, 1.0 ], [ 1.0, 1.0 ], [ 1.0, 0.0 ] ] ] } },
{ "type": "Feature", "properties": { "class_name": "it's \"quoted\"" }, "geometry": { "type": "Polygon", "coordinates": [ [ [ 2.0, 0.0 ], [ 3.0, 0.0 ], [ 3.0, 1.0 ], [ 2.0, 1.0 ], [ 2.0, 0.0 ] ] ] } },
{ "type": "Feature", "properties": { "class_name": "two\nlines" }, "geometry": { "type": "Polygon", "coordinates": [ [ [ 3.0, 0.0 ], [ 4.0, 0.0 ], [ 4.0, 1.0 ], [ 3.0, 1.0 ], [ 3.0, 0.0 ] ] ] } },
{ "type": "Feature", "properties": { "class_name": "50 % & <more>" }, "geometry": { "type": "Polygon", "coordinates": [ [ [ 4.0, 0.0 ], [ 5.0, 0.0 ], [ 5.0, 1.0 ], [ 4.0, 1.0 ], [ 4.0, 0.0 ] ] ] } },
{ "type": "Feature", "properties": { "class_name": "été, 水" }, "geometry": { "type": "Polygon", "coordinates": [ [ [ 5.0, 0.0 ], [ 6.0, 0.0 ], [ 6.0, 1.0 ], [ 5.0, 1.0 ], [ 5.0, 0.0 ] ] ] } }
]
}
